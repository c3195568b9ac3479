"""`python -m hlscore`."""

from hlscore.cli.main import main

if __name__ == "__main__":
    main()
