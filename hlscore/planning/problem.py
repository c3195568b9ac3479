"""The question that an allocation answers, and the shape of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hlscore.errors import ArtifactError, BudgetError, UsageError
from hlscore.planning.budget import Budget, parse_budget
from hlscore.planning.locks import Lock, locks_of, parse_lock
from hlscore.planning.memory import activation_bytes, base_bytes
from hlscore.planning.module_options import Option, check_curve, check_lock
from hlscore.reasons import tied_modules
from hlscore.records import Candidate, ModelIdentity, ModuleRow, ScoreReport
from hlscore.scores.registry import Score, find_score, score_of
from hlscore.scores.rows import order_rows
from hlscore.settings import MemorySettings, PlanSettings
from hlscore.wording import memory as memory_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything that an allocation depends on.

    Attributes:
        report: The scores.
        settings: What is asked for.
        rows: The candidates, the best first by the score.
        scores: Score of each row at the plan's rank; `None` where it cannot be had.
        score: The score that decides.
        budget: The budget.
        locks: Lock of each locked module, by name.
        tied: Modules whose weight is shared.
    """

    report: ScoreReport
    settings: PlanSettings
    rows: tuple[ModuleRow, ...]
    scores: tuple[float | None, ...]
    score: Score
    budget: Budget
    locks: Mapping[str, Lock]
    tied: frozenset[str]

    @property
    def limit(self) -> int:
        """The most that the budget allows, in its unit."""
        return self.budget.limit([row.n_params for row in self.rows])

    @property
    def seed(self) -> int:
        """Seed of random draws."""
        return self.report.run.seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The answer: one option per candidate.

    Attributes:
        options: What is done with each row, in order.
        solver: `sorted`, `HiGHS`, or `none` where there was nothing to choose.
        value: Sum of the selected values.
        bound: Upper bound of that sum over all choices that fit.
        probability: Share of resamples in which each row is trained in full; `None` where that
            is unknown, empty where it is for all.
    """

    options: tuple[Option, ...]
    solver: str = "none"
    value: float = 0.0
    bound: float = 0.0
    probability: tuple[float | None, ...] = ()

    @property
    def gap(self) -> float:
        """How far the value may be from the best one, relative to the larger of the two."""
        scale = max(abs(self.bound), abs(self.value))
        return max(0.0, self.bound - self.value) / scale if scale > 0 else 0.0


def problem_of(report: ScoreReport, settings: PlanSettings) -> Problem:
    """Put together what an allocation depends on; refuse scores that cannot decide."""
    if not report.candidates:
        raise ArtifactError("The report holds no candidate modules.")
    score = find_score(settings.score)
    rows = order_rows(report.candidates, score, settings.rank)
    scores = tuple(score_of(row, score, settings.rank) for row in rows)
    if all(value is None for value in scores):
        made = {
            "gradients": "rank with probes: without --data none",
            "whole gradients": "rank with probes and --estimator exact",
            "weights": "rank with --weight-scores, or with --data none",
            "nothing": "rank again",
        }
        raise UsageError(
            f"The report holds no value of '{score.name}'.",
            hint=f"Choose another --score, or {made[score.needs]}.",
        )
    return Problem(
        report=report,
        settings=settings,
        rows=rows,
        scores=scores,
        score=score,
        budget=parse_budget(settings.budget),
        locks=locks_of(settings.locks, [row.module for row in rows]),
        tied=tied_modules(report.rows),
    )


def check_plan_settings(settings: PlanSettings) -> None:
    """Refuse a bad score name, budget or lock before a model is loaded."""
    score = find_score(settings.score)
    if settings.ranks:
        check_curve(score)
    parse_budget(settings.budget)
    for lock in settings.locks:
        parse_lock(lock)


def check_plan_for(
    model: ModelIdentity, modules: Sequence[Candidate], settings: PlanSettings
) -> None:
    """Refuse a budget or a lock that cannot work for a model, before it is probed."""
    candidates = [item for item in modules if not item.skipped]
    tied = tied_modules(modules)
    locks = locks_of(settings.locks, [item.module for item in candidates])
    for module, lock in locks.items():
        check_lock(module, lock, tied)
    budget = parse_budget(settings.budget)
    if not settings.ranks and len(locks) < len(candidates):
        budget.check_one_fits([item.n_params for item in candidates])
    if budget.unit == "bytes":
        free_bytes(model, budget, settings.memory)


def free_bytes(model: ModelIdentity, budget: Budget, memory: MemorySettings) -> int:
    """Bytes that trained modules may take, under a budget of memory."""
    fixed = base_bytes(model, memory) + activation_bytes(model.dimensions, memory)
    free = (budget.amount or 0) - fixed
    if free <= 0:
        raise too_small(model, budget, memory)
    return free


def too_small(
    model: ModelIdentity, budget: Budget, memory: MemorySettings, trained: int = 0
) -> BudgetError:
    """The error for a memory budget into which not even the least fits, with what each part takes.

    Args:
        trained: Least bytes of what has to be trained.
    """
    base = base_bytes(model, memory)
    activations = activation_bytes(model.dimensions, memory)
    parts = (
        f"the frozen weights take {memory_text(base)}, activations about {memory_text(activations)}"
    )
    if trained:
        parts += f", what has to be trained at least {memory_text(trained)}"
    return BudgetError(
        f"A training memory of {budget.text} is too small for {model.model}: {parts}.",
        hint="Give more memory, --base 4, another --optimizer, a lower --rank or a shorter "
        "--train-length.",
    )
