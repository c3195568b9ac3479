"""A file that is either of the two artifacts."""

from __future__ import annotations

from pathlib import Path

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import read_plan
from hlscore.errors import ArtifactError
from hlscore.records import ScoreReport

_PARQUET = b"PAR1"


def read_artifact(path: Path) -> Plan | ScoreReport:
    """Read a plan or a score report; the content decides which, not the name.

    Args:
        path: A `plan.json` or a `scores.parquet`.

    Returns:
        The plan or the report.

    Raises:
        ArtifactError: There is no such file, or it is neither.
    """
    if not path.is_file():
        raise ArtifactError(
            f"There is no file '{path}'.",
            hint="`hlscore rank MODEL` writes scores.parquet and plan.json.",
        )
    try:
        with path.open("rb") as file:
            is_report = file.read(len(_PARQUET)) == _PARQUET
    except OSError as error:
        raise ArtifactError(f"'{path}' cannot be read: {error.strerror}.") from error
    if not is_report:
        return read_plan(path)
    from hlscore.artifacts.report import read_report

    return read_report(path)
