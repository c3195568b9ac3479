"""A file that is either of the two artifacts."""

from __future__ import annotations

from pathlib import Path

from hlscore.artifacts.files import check_file, first_bytes
from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import read_plan
from hlscore.errors import ArtifactError
from hlscore.records import ScoreReport


def read_artifact(path: Path) -> Plan | ScoreReport:
    """Read a plan or a score report; the content decides which, not the name."""
    check_is_artifact(path)
    if not first_bytes(path).startswith(b"PAR1"):
        return read_plan(path)
    from hlscore.artifacts.report import read_report

    return read_report(path)


def check_is_artifact(path: Path) -> None:
    """Refuse a file that is neither a table nor JSON: it was taken for a plan by mistake."""
    hint = "`hlscore rank MODEL` writes scores.parquet and plan.json."
    check_file(path, hint=hint)
    start = first_bytes(path)
    if start and not start.startswith((b"{", b"[", b"PAR1")):
        raise ArtifactError(f"'{path}' is not a plan or a score report.", hint=hint)
