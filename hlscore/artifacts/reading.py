"""A file that is either of the two artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hlscore.artifacts.files import check_file
from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import read_plan
from hlscore.errors import ArtifactError
from hlscore.records import ScoreReport

if TYPE_CHECKING:
    from hlscore.artifacts.report import Resamples

_PARQUET = b"PAR1"
_START_BYTES = 256
_HINT = "`hlscore rank MODEL` writes scores.parquet and plan.json."


def read_artifact(path: Path, *, resamples: Resamples | None = None) -> Plan | ScoreReport:
    """Read a plan or a score report; the content decides which, not the name.

    Args:
        resamples: Which resamples of a report are read; all by default.
    """
    if not is_report(path):
        refuse_other_file(path)
        return read_plan(path)
    from hlscore.artifacts.report import read_report

    return read_report(path, resamples=resamples)


def refuse_other_file(path: Path) -> None:
    """Refuse a file that is neither a table nor JSON: it was taken for a plan by mistake."""
    check_file(path, hint=_HINT)
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError as error:
        raise ArtifactError(f"'{path}' cannot be read: {error.strerror}.") from error
    if start and not start.startswith((b"{", b"[", _PARQUET)):
        raise ArtifactError(f"'{path}' is not a plan or a score report.", hint=_HINT)


def is_report(path: Path) -> bool:
    """Whether a file is a table; anything else is taken for a plan."""
    check_file(path, hint=_HINT)
    try:
        with path.open("rb") as file:
            return file.read(len(_PARQUET)) == _PARQUET
    except OSError as error:
        raise ArtifactError(f"'{path}' cannot be read: {error.strerror}.") from error
