"""Commands that are printed as the next ones to run, with the options of the run before them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hlscore.artifacts.files import SCORES_FILE
from hlscore.artifacts.plan import Plan
from hlscore.records import ScoreReport
from hlscore.settings import NOT_VALIDATED, PlanSettings, ValidateSettings, arguments
from hlscore.views.terminal import command


def plan_command(
    source: Plan | ScoreReport, scores: Path, *options: str, without: Iterable[str] = ()
) -> str:
    """`hlscore plan` with the settings of a plan or of a run, then further options.

    Args:
        without: Fields of the settings that `options` give.
    """
    if isinstance(source, Plan):
        settings: Any = asdict(source.settings)
        ranked: Any = source.provenance.settings.get("plan", {})
    else:
        settings = source.run.settings.get("plan", {})
        ranked = {"score": source.run.score, "rank": source.run.rank}
    # What the report was ranked by is the default.
    same = [name for name in ("score", "rank") if settings.get(name) == ranked.get(name)]
    words = arguments(PlanSettings, settings, without=[*without, *same])
    return command("plan", scores, *words, *options)


def validate_command(report: ScoreReport, plan_file: Path) -> str:
    """`hlscore validate` of a plan on the model and the data of a run."""
    run: Any = report.run.settings
    given = {
        **{part: run.get(part) for part in ("model", "data")},
        "assistant_only_loss": run.get("objective", {}).get("assistant_only_loss", False),
    }
    words = arguments(ValidateSettings, given, without=("model", "samples", *NOT_VALIDATED))
    return command("validate", report.model.model, "--plan", plan_file, *words)


def scores_beside(plan: Plan, path: Path) -> Path | None:
    """The scores that selected a plan, if they are in its directory."""
    scores = path.with_name(SCORES_FILE)
    return scores if plan.method == "score" and scores.is_file() else None
