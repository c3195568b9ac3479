"""Plans and score reports brought into one form: a plan, and the resamples where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hlscore.agreement.facts import fit_for_plans
from hlscore.agreement.resamples import resampled_tau
from hlscore.artifacts.plan import Plan
from hlscore.errors import HlscoreError
from hlscore.planning.make_plan import make_plan, replan, run_settings
from hlscore.records import ScoreReport
from hlscore.scores.registry import find_score, replicates_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of two files that are compared.

    Attributes:
        path: The file.
        plan: What it holds, or what its scores give by the plain rule of planning.
        from_scores: Whether the file holds scores.
        resampled_tau: Agreement of the scores with themselves: tau between two resamples; `None`
            where there are none.
    """

    path: Path
    plan: Plan
    from_scores: bool
    resampled_tau: float | None = None


def sides_of(
    files: tuple[tuple[Path, Plan | ScoreReport], tuple[Path, Plan | ScoreReport]],
    given: Mapping[str, Any],
) -> tuple[Side, Side]:
    """Turn two files into plans that can be compared.

    A report beside a plan is planned with the settings of that plan.

    Args:
        given: Plan settings that were asked for, by name.

    Returns:
        Both sides in the order given.
    """
    plans = [content for _, content in files if isinstance(content, Plan)]
    like = plans[0] if plans else None
    first, second = (
        Side(path=path, plan=content, from_scores=False)
        if isinstance(content, Plan)
        else _side(path, content, like, given)
        for path, content in files
    )
    return first, second


def _side(path: Path, report: ScoreReport, like: Plan | None, given: Mapping[str, Any]) -> Side:
    with fit_for_plans(path):
        try:
            if like is None:
                plan = make_plan(report, run_settings(report, given))
            else:
                plan = replan(like, report, **given)
        except HlscoreError as error:  # of two files, which one
            raise type(error)(f"'{path}': {error.message}", hint=error.hint) from error
    score, rank = find_score(plan.settings.score), plan.settings.rank
    replicates = replicates_at(report.candidates, score, rank, report.run.rank)
    return Side(path=path, plan=plan, from_scores=True, resampled_tau=resampled_tau(replicates))
