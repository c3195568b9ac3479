"""Plans and score reports brought into one form: a plan, and the resamples where there are any."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hlscore.agreement.facts import fit_for_plans
from hlscore.agreement.resamples import resampled_tau
from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_making import make_plan, settings_of
from hlscore.errors import HlscoreError
from hlscore.planning.allocation import allocate
from hlscore.planning.locks import matches
from hlscore.records import ScoreReport
from hlscore.scores.registry import find_score, replicates_at
from hlscore.settings import PlanSettings

DEFAULT_BUDGET = "0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How a report becomes a plan; `None` leaves it to the other side, or to the report.

    Attributes:
        budget: Budget.
        score: Name of the score that decides.
        rank: LoRA rank.
    """

    budget: str | None = None
    score: str | None = None
    rank: int | None = None


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
    files: tuple[tuple[Path, Plan | ScoreReport], tuple[Path, Plan | ScoreReport]], wishes: Wishes
) -> tuple[Side, Side]:
    """Turn two files into plans that can be compared.

    A report beside a plan is planned like that plan: with its budget, score, ranks, value power,
    locks, memory and method.

    Returns:
        Both sides in the order given.
    """
    plans = [content for _, content in files if isinstance(content, Plan)]
    like = plans[0] if plans else None
    first, second = (
        Side(path=path, plan=content, from_scores=False)
        if isinstance(content, Plan)
        else _planned(path, content, _settings(content, like, wishes))
        for path, content in files
    )
    return first, second


def _settings(report: ScoreReport, like: Plan | None, wishes: Wishes) -> PlanSettings:
    if like is None:
        return PlanSettings(
            budget=wishes.budget or DEFAULT_BUDGET,
            score=wishes.score or report.run.score,
            rank=report.run.rank if wishes.rank is None else wishes.rank,
        )
    settings = settings_of(like)
    rank = settings.rank if wishes.rank is None else wishes.rank
    names = [row.module for row in report.candidates]
    return replace(
        settings,
        budget=wishes.budget or settings.budget,
        score=wishes.score or settings.score,
        rank=rank,
        alpha=settings.alpha if rank == settings.rank else None,
        # The report may be of a model that lacks some of the modules.
        locks=tuple(lock for lock in settings.locks if matches(lock, names)),
    )


def _planned(path: Path, report: ScoreReport, settings: PlanSettings) -> Side:
    with fit_for_plans(path):
        try:
            plan = make_plan(report, allocate(report, settings))
        except HlscoreError as error:  # of two files, which one
            raise type(error)(f"'{path}': {error.message}", hint=error.hint) from error
    replicates = replicates_at(
        report.candidates, find_score(settings.score), settings.rank, report.run.rank
    )
    return Side(path=path, plan=plan, from_scores=True, resampled_tau=resampled_tau(replicates))
