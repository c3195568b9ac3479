"""One LoRA rank for all: the budget buys full fine-tuning for some modules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hlscore.errors import BudgetError
from hlscore.planning.choice import Spending, choose, selection_probability
from hlscore.planning.options import Option, alternative, option
from hlscore.planning.problem import (
    Picks,
    Problem,
    fixed_bytes,
    free_bytes,
    spent_of,
    too_small,
)
from hlscore.scores.registry import score_of


def choose_uniform(problem: Problem) -> Picks:
    """Buy full fine-tuning for the modules of the largest total score.

    Args:
        problem: Rows, score, budget, locks.

    Returns:
        One option per row.

    Raises:
        BudgetError: Locked modules alone, or not a single module, fit.
        UsageError: A lock or the score cannot be used.
    """
    settings, locks = problem.settings, problem.locks
    rest = [alternative(row, locks.get(row.module), problem.tied, settings) for row in problem.rows]
    full = [option(row, "full", 0, settings.memory) for row in problem.rows]
    free = [place for place, row in enumerate(problem.rows) if row.module not in locks]
    limit = problem.budget.limit(problem.params) if free else _largest(problem)
    spending = _spending(problem, rest, full, free, limit)
    values = _values(problem)
    bought = choose(values[free], spending)
    options = list(rest)
    for place, chosen in zip(free, bought.chosen, strict=True):
        if chosen:
            options[place] = full[place]
    memory = problem.budget.unit == "bytes"
    return Picks(
        options=tuple(options),
        limit=limit,
        spent=_memory(problem, options) if memory else spent_of(options, problem.budget, "full"),
        counts="memory" if memory else "full",
        solver="sorted" if spending.by_count else "HiGHS",
        value=float(values[free][bought.chosen].sum()),
        bound=bought.bound,
        probability=_probability(problem, free, spending),
    )


def _largest(problem: Problem) -> int:
    """The limit where nothing is left to choose: too small a budget is no fault then."""
    try:
        return problem.budget.limit(problem.params)
    except BudgetError:
        return 0


def _values(problem: Problem) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = [score_of(row, problem.score, problem.settings.rank) for row in problem.rows]
    return np.array(values, dtype=np.float64)


def _spending(
    problem: Problem,
    rest: Sequence[Option],
    full: Sequence[Option],
    free: Sequence[int],
    limit: int,
) -> Spending:
    unit = problem.budget.unit
    if unit == "bytes":
        costs = [full[place].bytes - rest[place].bytes for place in free]
        left = free_bytes(problem.model, problem.budget, problem.settings.memory) - sum(
            item.bytes for item in rest
        )
        if left < 0:
            raise too_small(
                problem.model,
                problem.budget,
                problem.settings.memory,
                sum(item.bytes for item in rest),
            )
    else:
        costs = [1 if unit == "modules" else full[place].params for place in free]
        locked = spent_of(rest, problem.budget, "full")
        left = limit - locked
        if left < 0:
            raise BudgetError(
                f"The modules locked to full take {locked:,} {unit}, more than the "
                f"{limit:,} that a budget of {problem.budget.text} allows.",
                hint="Lock fewer modules, or raise the budget.",
            )
    return Spending(costs=np.array(costs, dtype=np.int64), limit=left, by_count=unit == "modules")


def _memory(problem: Problem, options: Sequence[Option]) -> int:
    fixed = fixed_bytes(problem.model, problem.settings.memory)
    return fixed + sum(item.bytes for item in options)


def _probability(
    problem: Problem, free: Sequence[int], spending: Spending
) -> tuple[float | None, ...]:
    shares: list[float | None] = [None] * len(problem.rows)
    replicates = replicates_of(problem)
    if free and all(replicates):
        table = np.array([replicates[place] for place in free], dtype=np.float64)
        for place, share in zip(free, selection_probability(table, spending), strict=True):
            shares[place] = float(share)
    return tuple(shares)


def replicates_of(problem: Problem) -> list[tuple[float, ...]]:
    """Resamples of each row's score; empty where there are none for the score and the rank.

    Args:
        problem: Rows and score.

    Returns:
        One tuple per row, all of the same length.
    """
    found = [problem.score.replicates(row) for row in problem.rows]
    other_rank = problem.score.follows_rank and problem.settings.rank != problem.run_rank
    return [()] * len(found) if other_rank or not all(found) else found
