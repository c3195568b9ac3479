"""One LoRA rank for all, and full fine-tuning for some modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlscore.errors import BudgetError
from hlscore.planning.choice import choose, fill, selection_probability
from hlscore.planning.options import Option, alternative, is_unreached, option
from hlscore.planning.problem import Picks, Problem, counts_of, free_bytes, spent_of, too_small
from hlscore.scores.registry import replicates_at, score_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """What can be done with each row: full fine-tuning, or else.

    Attributes:
        rest: What is done with each row that is not trained in full.
        full: Full fine-tuning of each row.
        free: Places of the rows that are neither locked nor unreached, int64 [free].
        costs: What full fine-tuning of each free row takes of the budget, int64 [free].
        limit: The most that the budget allows, in its unit.
        left: What of it is left for the free rows.
    """

    rest: tuple[Option, ...]
    full: tuple[Option, ...]
    free: NDArray[np.int64]
    costs: NDArray[np.int64]
    limit: int
    left: int


def alternatives_of(problem: Problem) -> Alternatives:
    """Price full fine-tuning of every row against its alternative."""
    settings, locks = problem.settings, problem.locks
    rest = tuple(
        alternative(row, locks.get(row.module), problem.tied, settings) for row in problem.rows
    )
    full = tuple(option(row, "full", 0, settings.memory) for row in problem.rows)
    free = [
        place
        for place, row in enumerate(problem.rows)
        if row.module not in locks and not is_unreached(row)
    ]
    limit = problem.budget.limit(problem.params)
    unit = problem.budget.unit
    if unit == "bytes":
        costs = [full[place].bytes - rest[place].bytes for place in free]
    else:
        costs = [1 if unit == "modules" else full[place].params for place in free]
    return Alternatives(
        rest=rest,
        full=full,
        free=np.array(free, dtype=np.int64),
        costs=np.array(costs, dtype=np.int64),
        limit=limit,
        left=_left(problem, rest, limit),
    )


def choose_uniform(problem: Problem) -> Picks:
    """Full fine-tuning for the modules of the largest total score."""
    given = alternatives_of(problem)
    if len(given.free):
        problem.budget.check_one_fits(problem.params)
    values = _values(problem)[given.free]
    chosen, bound = choose(values, given.costs, given.left)
    return picks_of(
        problem,
        given,
        chosen,
        solver="sorted" if problem.budget.unit == "modules" else "HiGHS",
        value=float(values[chosen].sum()),
        bound=bound,
        probability=_probability(problem, given),
    )


def take_in_order(problem: Problem, order: Mapping[str, float], spent: int) -> Picks:
    """Train modules in full in a given order, as long as they fit.

    Args:
        order: A number for each module; the highest comes first.
        spent: What the free modules in full may cost together.
    """
    given = alternatives_of(problem)
    numbers = [order[problem.rows[place].module] for place in given.free]
    chosen = np.zeros(len(given.free), dtype=np.bool_)
    places = np.argsort(-np.array(numbers, dtype=np.float64), kind="stable")
    chosen[fill(places, given.costs, spent)] = True
    return picks_of(problem, given, chosen)


def picks_of(
    problem: Problem,
    given: Alternatives,
    chosen: NDArray[np.bool_],
    *,
    solver: str = "none",
    value: float = 0.0,
    bound: float = 0.0,
    probability: tuple[float | None, ...] | None = None,
) -> Picks:
    """Put a choice among the free rows together with the locked ones.

    Args:
        chosen: Whether each free row is, bool [free].
        probability: Selection probability of each row; `None` where it is unknown.
    """
    options = list(given.rest)
    for place in given.free[chosen]:
        options[place] = given.full[place]
    return Picks(
        options=tuple(options),
        limit=given.limit,
        spent=spent_of(problem, options),
        counts=counts_of(problem),
        solver=solver,
        value=value,
        bound=bound,
        probability=probability or (None,) * len(options),
    )


def _values(problem: Problem) -> NDArray[np.float64]:
    values = [score_of(row, problem.score, problem.settings.rank) for row in problem.rows]
    return np.array(values, dtype=np.float64)


def _left(problem: Problem, rest: Sequence[Option], limit: int) -> int:
    """What is left for the free rows when the others are paid."""
    budget, memory = problem.budget, problem.settings.memory
    if budget.unit == "bytes":
        trained = sum(item.bytes for item in rest)
        left = free_bytes(problem.model, budget, memory) - trained
        if left < 0:
            raise too_small(problem.model, budget, memory, trained)
        return left
    locked = spent_of(problem, rest)
    if locked > limit:
        raise BudgetError(
            f"The modules locked to full take {locked:,} {budget.unit}, more than the "
            f"{limit:,} that a budget of {budget.text} allows.",
            hint="Lock fewer modules, or raise the budget.",
        )
    return limit - locked


def _probability(problem: Problem, given: Alternatives) -> tuple[float | None, ...]:
    shares: list[float | None] = [None] * len(problem.rows)
    replicates = replicates_of(problem)
    if len(given.free) and all(replicates):
        table = np.array([replicates[place] for place in given.free], dtype=np.float64)
        found = selection_probability(table, given.costs, given.left)
        for place, share in zip(given.free, found, strict=True):
            shares[place] = float(share)
    return tuple(shares)


def replicates_of(problem: Problem) -> list[tuple[float, ...]]:
    """Resamples of each row's score; empty where there are none for the score and the rank.

    Returns:
        One tuple per row, all of the same length.
    """
    return replicates_at(problem.rows, problem.score, problem.settings.rank, problem.run_rank)
