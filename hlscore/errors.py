"""The error family: each error says what was wrong, where, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_COULD_NOT_RUN = 3
EXIT_INTERRUPTED = 130


class HlscoreError(Exception):
    """Base of every error that hlscore raises on purpose.

    Attributes:
        message: What was wrong and where, in one sentence.
        hint: What to do next; empty when the message already says it.
        exit_code: Exit status of the command line when this error ends it.
    """

    exit_code: int = EXIT_COULD_NOT_RUN

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message if not hint else f"{message} {hint}")
        self.message = message
        self.hint = hint


class UsageError(HlscoreError):
    """An option or argument has a value that cannot be used."""

    exit_code = EXIT_USAGE


class Interrupted(HlscoreError):  # noqa: N818 - nothing went wrong
    """The user pressed Ctrl-C."""

    exit_code = EXIT_INTERRUPTED


class BudgetError(UsageError):
    """The budget is malformed, or too small for a single module."""


class ModelError(HlscoreError):
    """The model or its tokenizer cannot be found, read or used."""


class DataError(HlscoreError):
    """The probe data cannot be found, read or used."""


class CaptureError(HlscoreError):
    """The probe run produced something that is not a gradient (NaN, infinity, nothing)."""


class RewardError(HlscoreError):
    """A reward function failed."""


class ArtifactError(HlscoreError):
    """A report or plan file cannot be read or written."""


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The start of a hint that names what a mistyped word comes near to; empty without any."""
    near = get_close_matches(word, list(names), n=1, cutoff=0.75)
    return f"Did you mean '{near[0]}'? " if near else ""


def first_line(error: BaseException) -> str:
    """Give the first line of a library's error message, for quoting in one of ours.

    A line that only announces the next one is joined with it; a bare word, such as the key of a
    `KeyError`, gets the name of the error before it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text if " " in text else f"{type(error).__name__}: {text}"
