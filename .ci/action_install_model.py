"""Second step of the Action: torch and transformers, where plans are held against a model."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from action_inputs import EXIT_COULD_NOT_RUN, InputError, given, given_args, print_error
from action_install import ROOT, pip_install


def main() -> int:
    """Install the rest of hlscore where it is needed.

    Returns:
        The exit status of the step.
    """
    if not asks_for_model():
        return 0
    try:
        pip_install(Path(sys.executable), "-c", str(ROOT / "constraints.txt"))
    except subprocess.CalledProcessError:
        print_error("What a model needs could not be installed: see what pip says in the log.")
        return EXIT_COULD_NOT_RUN
    return 0


def asks_for_model() -> bool:
    """Whether the inputs or the configuration name a model.

    What is wrong with them is left for the check to say.
    """
    from hlscore.checks.configuration import read_configuration
    from hlscore.errors import HlscoreError

    try:
        words = given_args()
        config = _value(words, "--config") or given("config")
        if given("model") or _value(words, "--model"):
            return True
        return "model" in read_configuration(Path(config) if config else None)
    except (InputError, HlscoreError):
        return False


def _value(words: list[str], option: str) -> str:
    """What an option is given, the last time that it is."""
    found = ""
    for word, following in pairwise([*words, ""]):
        if word == option:
            found = following
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


if __name__ == "__main__":
    sys.exit(main())
