"""Inputs of the Action, and what it says to GitHub; needs nothing but Python."""

from __future__ import annotations

import os
import shlex
import sys
from glob import glob, has_magic
from pathlib import Path

EXIT_USAGE = 2
EXIT_COULD_NOT_RUN = 3

# The Action asks for these itself, or could not go on after them.
_OWN = ("--", "--explain", "--format", "--help", "--json", "--out", "-h", "-o")


class InputError(Exception):
    """An input that cannot be used."""


def given(name: str) -> str:
    """An input as it was written, without the white space around it.

    Args:
        name: As in `action.yml`.

    Returns:
        The text; empty where there is none.
    """
    return os.environ.get(f"INPUT_{name.upper().replace('-', '_')}", "").strip()


def given_args() -> list[str]:
    """The words of the input `args`.

    Returns:
        Words as a shell parts them; nothing is expanded or run.

    Raises:
        InputError: A quote is open, or an option is one of the Action's own.
    """
    try:
        words = shlex.split(given("args"))
    except ValueError as error:
        raise InputError(f"The input args cannot be split into words: {error}.") from error
    for word in words:
        if word.split("=")[0] in _OWN or word.startswith(("-o", "-h")):
            raise InputError(f"The input args cannot hold {word}: the Action sets the output.")
    return words


def given_plans() -> list[str]:
    """The files that the input `plan` names.

    Returns:
        Paths: each line that is a file or holds no wildcard as it is, else what it matches.

    Raises:
        InputError: A pattern matches no file.
    """
    found: list[str] = []
    for line in filter(None, map(str.strip, given("plan").splitlines())):
        if Path(line).exists() or not has_magic(line):
            found.append(line)
            continue
        # Path.glob takes no absolute patterns.
        matches = sorted(filter(os.path.isfile, glob(line, recursive=True)))  # noqa: PTH207
        if not matches:
            raise InputError(f"The input plan has the pattern {line}, which matches no file.")
        found += matches
    return list(dict.fromkeys(found))


def print_error(text: str) -> None:
    """Print an annotation of the job.

    Args:
        text: What went wrong; it may hold anything.
    """
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    print_text(f"::error title=hlscore check::{escaped}\n")


def print_text(text: str) -> None:
    """Print at once, whatever the terminal can show."""
    sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
    sys.stdout.buffer.flush()


def append(variable: str, text: str) -> None:
    """Append to a file that GitHub reads after the step.

    Args:
        variable: Environment variable that names the file; without it nothing is written.
        text: What to append.
    """
    if file := os.environ.get(variable):
        with Path(file).open("ab") as stream:
            stream.write(text.encode("utf-8", errors="replace"))
