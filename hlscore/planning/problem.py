"""The question that an allocation answers, and the shape of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hlscore.errors import ArtifactError, BudgetError, UsageError
from hlscore.planning.budget import Budget, parse_budget
from hlscore.planning.gated import without_lesser
from hlscore.planning.knapsack import Numbers
from hlscore.planning.locks import Lock, locks_of, parse_lock
from hlscore.planning.memory import Choice, activation_bytes, base_bytes
from hlscore.records import Candidate, Matrix, ModelIdentity, ModuleRow, ScoreReport, tied_modules
from hlscore.scores.registry import Score, find_score, replicates_at, score_of
from hlscore.scores.rows import order_rows
from hlscore.settings import MemorySettings, PlanSettings
from hlscore.wording import memory as memory_text


def holder_of(row: Matrix) -> str:
    """The module that is trained in full with this one: PEFT copies what holds expert stacks."""
    return row.module.rpartition(".")[0] if row.form == "experts" else row.module


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything that an allocation depends on."""

    report: ScoreReport
    settings: PlanSettings
    rows: tuple[ModuleRow, ...]  # the candidates, the best first by the score
    values: Numbers  # score of each row at the plan's rank, NaN where unknown, float64 [rows]
    # Resamples of each score, all equally many; empty ones for some scores and ranks.
    replicates: list[tuple[float, ...]]
    score: Score
    budget: Budget
    locks: Mapping[str, Lock]  # of each locked module, by name
    tied: frozenset[str]  # modules whose weight another one shares

    @property
    def limit(self) -> int:
        """The most that the budget allows, in its unit."""
        return self.budget.limit([row.n_params for row in self.rows])

    def without_lora(self, row: ModuleRow) -> bool:
        """Whether LoRA is ruled out: the loss never reaches the module, or its weight is tied."""
        return row.unreached or row.module in self.tied

    def otherwise(self, row: ModuleRow, rank: int) -> Choice:
        """What is done with a module that is not chosen, under one LoRA rank for all."""
        lock = self.locks.get(row.module)
        mode = lock.mode if lock else "frozen" if self.without_lora(row) else "lora"
        rank = (lock and lock.rank) or rank
        return Choice(row=row, mode=mode, rank=rank if mode == "lora" else 0)

    def without_lesser(self, values: Numbers) -> Numbers:
        """Values [rows, sets], NaN for modules ruled out by the other one of their gated pair."""
        full = {module for module, lock in self.locks.items() if lock.mode == "full"}
        of_updates = self.report.run.scores_updates
        return without_lesser(
            self.rows, values, full, self.settings.gated_pairs, self.score, of_updates=of_updates
        )

    def chosen_together(self) -> list[tuple[int, ...]]:
        """Places of the rows that may be chosen to be trained in full, by what is chosen together.

        Expert stacks of one module may not be chosen where one is locked, unreached or left out.
        """
        groups: dict[str, list[int]] = {}
        for place, row in enumerate(self.rows):
            groups.setdefault(holder_of(row), []).append(place)
        for row in self.report.rows:
            stack = row.form == "experts" and not row.is_candidate
            if stack or row.unreached or row.module in self.locks:
                groups.pop(holder_of(row), None)
        return list(map(tuple, groups.values()))

    def asks_too_much(self, needs: str, allows: str) -> BudgetError:
        """The error for a budget that what has to be trained exceeds."""
        asked = {"--lock": self.locks, "--min-rank": self.settings.min_rank}
        flags = [flag for flag, given in asked.items() if given]
        return BudgetError(
            f"{' and '.join(flags) or 'The plan'} asks for {needs}; a budget of "
            f"{self.budget.text} allows {allows}.",
            hint="Raise the budget, lock fewer modules"
            f"{', or lower --min-rank' if self.settings.min_rank else ''}.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The answer: one choice per candidate."""

    choices: tuple[Choice, ...]  # of each row, in order
    solver: str = "none"  # `sorted`, `HiGHS`, or `none` where there was nothing to choose
    value: float = 0.0  # sum of the selected values
    bound: float = 0.0  # upper bound of that sum over all choices that fit
    # Share of resamples in which each row is trained in full; empty where it is unknown for all.
    probability: tuple[float | None, ...] = ()


def problem_of(report: ScoreReport, settings: PlanSettings) -> Problem:
    """Put together what an allocation depends on; refuse scores that cannot decide."""
    if not report.candidates:
        raise ArtifactError("The report holds no candidate modules.")
    score = score_in(settings)
    rows = order_rows(report.candidates, score, settings.rank)
    values = np.array([score_of(row, score, settings.rank) for row in rows], dtype=np.float64)
    if np.isnan(values).all():
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
    tied = tied_modules(report.rows)
    return Problem(
        report=report,
        settings=settings,
        rows=rows,
        values=values,
        replicates=replicates_at(rows, score, settings.rank, report.run.rank),
        score=score,
        budget=parse_budget(settings.budget),
        locks=locks_of(settings.locks, [row.module for row in rows], tied),
        tied=tied,
    )


def score_in(settings: PlanSettings) -> Score:
    """The score that decides; refuses one that cannot choose the ranks asked for."""
    score = find_score(settings.score)
    if settings.ranks and not score.leaves_over:
        raise UsageError(
            f"--ranks needs a score with a value for each rank; '{score.name}' has none.",
            hint="Use --score hls, tail or l1_adam.",
        )
    return score


def check_plan_settings(settings: PlanSettings) -> None:
    """Refuse a bad score name, budget or lock before a model is loaded."""
    score_in(settings)
    parse_budget(settings.budget)
    for lock in settings.locks:
        parse_lock(lock)


def check_plan_for(
    model: ModelIdentity, modules: Sequence[Candidate], settings: PlanSettings
) -> None:
    """Refuse a budget or a lock that cannot work for a model, before it is probed."""
    candidates = [item for item in modules if not item.skipped]
    locks = locks_of(settings.locks, [item.module for item in candidates], tied_modules(modules))
    budget = parse_budget(settings.budget)
    if not settings.ranks and len(locks) < len(candidates):
        budget.check_one_fits([item.n_params for item in candidates])
    if budget.unit == "bytes":
        free_bytes(model, budget, settings.memory)


def free_bytes(model: ModelIdentity, budget: Budget, memory: MemorySettings, least: int = 0) -> int:
    """Bytes that trained modules may take within a budget of memory; refuses less than `least`."""
    base, activations = base_bytes(model, memory), activation_bytes(model.dimensions, memory)
    free = budget.amount - base - activations
    if free <= 0 or free < least:
        trained = f", what has to be trained at least {memory_text(least)}" if least else ""
        raise BudgetError(
            f"A training memory of {budget.text} is too small for {model.model}: the frozen "
            f"weights take {memory_text(base)}, activations about {memory_text(activations)}"
            f"{trained}.",
            hint="Give more memory, --base 4, another --optimizer, a lower --rank or a shorter "
            "--train-length.",
        )
    return free
