"""The error family: each error says what was wrong, where, and what to do next."""

from __future__ import annotations

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


class BudgetError(UsageError):
    """The budget is malformed, or too small for a single module."""


class ModelError(HlscoreError):
    """The model or its tokenizer cannot be found, read or used."""


class DataError(HlscoreError):
    """The probe data cannot be found, read or used."""


class CaptureError(HlscoreError):
    """The probe run produced something that is not a gradient (NaN, infinity, nothing)."""


class ArtifactError(HlscoreError):
    """A report or plan file cannot be read or written."""


def first_line(error: BaseException) -> str:
    """Give the first line of a library's error message, for quoting in one of ours."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
