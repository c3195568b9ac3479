"""First step of the Action: an environment with all that checking a plan by itself needs."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir

from action_inputs import EXIT_COULD_NOT_RUN, EXIT_USAGE, append, given, print_error

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Install what is asked for, and tell the next steps which Python has it.

    Returns:
        The exit status of the step.
    """
    asked = given("install")
    if asked not in ("true", "false"):
        print_error("The input install must be true or false.")
        return EXIT_USAGE
    if asked == "false":
        if find_spec("hlscore") is None:
            print_error("The input install is false, but the input python has no hlscore.")
            return EXIT_COULD_NOT_RUN
        append("GITHUB_OUTPUT", f"python={sys.executable}\n")
        return 0
    python = _environment()
    try:
        pip_install(python, "--no-deps", "-r", str(ROOT / ".ci" / "check-requirements.txt"))
    except subprocess.CalledProcessError:
        print_error("hlscore could not be installed: see what pip says in the log.")
        return EXIT_COULD_NOT_RUN
    append("GITHUB_OUTPUT", f"python={python}\n")
    return 0


def _environment() -> Path:
    """A virtual environment: a runner's own Python may not be installed into."""
    folder = Path(os.environ.get("RUNNER_TEMP") or gettempdir()) / "hlscore-action"
    venv.create(folder, with_pip=True)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip_install(python: Path, *options: str) -> None:
    """Install the hlscore of this Action.

    Args:
        python: Interpreter of the environment.
        *options: More of `pip install`.
    """
    # -I: a module of the checked repository must not be imported in place of pip's own.
    command = [str(python), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
               *options, str(ROOT)]  # fmt: skip
    subprocess.run(command, check=True)  # noqa: S603 - no shell


if __name__ == "__main__":
    sys.exit(main())
