"""One LoRA rank for all, and full fine-tuning for some modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlscore.errors import BudgetError
from hlscore.planning.gated import without_lesser
from hlscore.planning.knapsack import Menu, choose_options
from hlscore.planning.module_options import Option, alternative, is_unreached, option
from hlscore.planning.problem import Problem, Solution, free_bytes, too_small
from hlscore.planning.solver import Numbers
from hlscore.scores.registry import replicates_at

Chosen = NDArray[np.bool_]
# Modules that each resample looks at after the first that does not fit.
NEXT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """What can be done with each row: full fine-tuning, or else.

    Attributes:
        rest: What is done with each row that is not trained in full.
        full: Full fine-tuning of each row.
        free: Places of the rows that may be chosen, in groups that are chosen together. Locked
            and unreached rows may not be.
        costs: What full fine-tuning of each group takes of the budget, int64 [groups].
        left: What of the budget is left for them.
    """

    rest: tuple[Option, ...]
    full: tuple[Option, ...]
    free: tuple[tuple[int, ...], ...]
    costs: NDArray[np.int64]
    left: int


def alternatives_of(problem: Problem) -> Alternatives:
    """Price full fine-tuning of every row against its alternative."""
    settings, locks = problem.settings, problem.locks
    rest = tuple(
        alternative(row, locks.get(row.module), problem.tied, settings) for row in problem.rows
    )
    full = tuple(option(row, "full", 0, settings.memory) for row in problem.rows)
    free = _groups(problem)
    unit = problem.budget.unit
    if unit == "bytes":
        each = [one.bytes - other.bytes for one, other in zip(full, rest, strict=True)]
    else:
        each = [1 if unit == "modules" else one.params for one in full]
    return Alternatives(
        rest=rest,
        full=full,
        free=free,
        costs=np.array([sum(each[place] for place in group) for group in free], dtype=np.int64),
        left=_left(problem, rest),
    )


def _groups(problem: Problem) -> tuple[tuple[int, ...], ...]:
    """Places of the rows that may be chosen, by what is chosen together.

    All expert stacks of one module are trained in full or none is: PEFT copies the module that
    holds them. They may not be chosen where one of them is locked, unreached or left out.
    """
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(problem.rows):
        owner = row.module.rpartition(".")[0] if row.form == "experts" else row.module
        groups.setdefault(owner, []).append(place)
    for row in problem.report.rows:
        if not row.is_candidate and row.form == "experts":
            groups.pop(row.module.rpartition(".")[0], None)
    rows = problem.rows
    return tuple(
        tuple(group)
        for group in groups.values()
        if not any(rows[at].module in problem.locks or is_unreached(rows[at]) for at in group)
    )


def _sums(groups: Sequence[Sequence[int]], table: Numbers) -> Numbers:
    """Sums over the rows of each group, [groups, ...]; of a group of one the row itself."""
    if not groups:
        return table[:0]
    starts = np.cumsum([0, *map(len, groups[:-1])])
    sums: Numbers = np.add.reduceat(table[np.concatenate(groups)], starts, axis=0)
    return sums


def choose_uniform(problem: Problem) -> Solution:
    """Full fine-tuning for the modules of the largest total score."""
    given = alternatives_of(problem)
    if len(given.free):
        problem.budget.check_one_fits([row.n_params for row in problem.rows])
    table = without_lesser(problem, np.array(problem.scores, dtype=np.float64)[:, None])
    values = _sums(given.free, table)[:, 0]
    chosen, bound = choose(values, given.costs, given.left)
    return Solution(
        options=_with_full(given, chosen),
        solver="sorted" if _by_count(given.costs) else "HiGHS",
        value=float(values[chosen].sum()),
        bound=bound,
        probability=_probability(problem, given),
    )


def take_in_order(problem: Problem, order: Mapping[str, float], spent: int) -> Solution:
    """Train modules in full in a given order, as long as they fit.

    Args:
        order: A number for each module; the highest comes first.
        spent: What the free modules in full may cost together.
    """
    given = alternatives_of(problem)
    numbers = [max(order[problem.rows[place].module] for place in group) for group in given.free]
    chosen = np.zeros(len(given.free), dtype=np.bool_)
    places = np.argsort(-np.array(numbers, dtype=np.float64), kind="stable")
    chosen[fill(places, given.costs, spent)] = True
    return Solution(options=_with_full(given, chosen))


def _with_full(given: Alternatives, chosen: Chosen) -> tuple[Option, ...]:
    """The chosen of the free rows in full, and what is done with all others."""
    options = list(given.rest)
    for group, taken in zip(given.free, chosen, strict=True):
        if taken:
            for place in group:
                options[place] = given.full[place]
    return tuple(options)


def _left(problem: Problem, rest: Sequence[Option]) -> int:
    """What is left for the free rows when the others are paid."""
    budget, model, memory = problem.budget, problem.report.model, problem.settings.memory
    if budget.unit == "bytes":
        trained = sum(item.bytes for item in rest)
        left = free_bytes(model, budget, memory) - trained
        if left < 0:
            raise too_small(model, budget, memory, trained)
        return left
    full = [item.params for item in rest if item.mode == "full"]
    locked = len(full) if budget.unit == "modules" else sum(full)
    if locked > problem.limit:
        raise BudgetError(
            f"The modules locked to full take {locked:,} {budget.unit}, more than the "
            f"{problem.limit:,} that a budget of {budget.text} allows.",
            hint="Lock fewer modules, or raise the budget.",
        )
    return problem.limit - locked


def _probability(problem: Problem, given: Alternatives) -> tuple[float | None, ...]:
    shares: list[float | None] = [None] * len(problem.rows)
    replicates = replicates_of(problem)
    if len(given.free) and all(replicates):
        table = without_lesser(problem, np.array(replicates, dtype=np.float64))
        found = selection_probability(_sums(given.free, table), given.costs, given.left)
        for group, share in zip(given.free, found, strict=True):
            for place in group:
                shares[place] = float(share)
    return tuple(shares)


def replicates_of(problem: Problem) -> list[tuple[float, ...]]:
    """Resamples of each row's score, all equally many; none for some scores and ranks."""
    settings, run = problem.settings, problem.report.run
    return replicates_at(problem.rows, problem.score, settings.rank, run.rank)


def choose(scores: Numbers, costs: NDArray[np.int64], limit: int) -> tuple[Chosen, float]:
    """Choose the modules to train in full.

    Modules whose score is zero, negative or unknown are never selected: no gain was measured.
    Where each costs 1 the best scores win; else the set of largest total score that fits is a 0/1
    knapsack, solved by HiGHS to a relative gap of 1e-4.

    Args:
        scores: Score of each candidate, NaN where unknown, float64 [n], the best first.
        costs: Cost of each, int64 [n]: 1 under a budget of modules, else parameters or bytes
            beyond those of its alternative.
        limit: What they may cost together.

    Returns:
        Whether each is selected, bool [n], and an upper bound of the total score of any choice
        that fits.
    """
    worth = _worth(scores)
    if _by_count(costs):
        chosen = _highest(worth, limit)
        return chosen, float(worth[chosen].sum())
    return _knapsack(worth, costs, limit)


def fill(order: Iterable[int], costs: Sequence[int] | NDArray[np.int64], limit: int) -> list[int]:
    """Take what fits, one after the other.

    Returns:
        The places taken, in that order.
    """
    taken = []
    for place in order:
        if costs[place] <= limit:
            limit -= int(costs[place])
            taken.append(place)
    return taken


def selection_probability(replicates: Numbers, costs: NDArray[np.int64], limit: int) -> Numbers:
    """Share of bootstrap resamples in which each module is chosen.

    Where costs differ each resample takes the best score per cost first, and then what still fits
    of the next 100: within a module's cost of the best choice, and fast enough for every resample.

    Args:
        replicates: Scores of each candidate in each resample, float64 [n, resamples].

    Returns:
        float64 [n], between 0 and 1.
    """
    counts = np.zeros(len(replicates))
    for scores in replicates.T:
        worth = _worth(scores)
        if _by_count(costs):
            counts += _highest(worth, limit)
        else:
            counts += _by_worth_per_cost(worth, costs, limit)
    shares: Numbers = counts / replicates.shape[1]
    return shares


def _by_count(costs: NDArray[np.int64]) -> bool:
    return bool((costs == 1).all())


def _worth(scores: Numbers) -> Numbers:
    return np.where(np.isfinite(scores) & (scores > 0), scores, 0.0)


def _highest(worth: Numbers, limit: int) -> Chosen:
    chosen: Chosen = np.zeros(len(worth), dtype=np.bool_)
    chosen[np.argsort(-worth, kind="stable")[:limit]] = True
    return chosen & (worth > 0)


def _by_worth_per_cost(worth: Numbers, costs: NDArray[np.int64], limit: int) -> Chosen:
    """Take the best score per cost first, then what still fits of the next ones."""
    chosen: Chosen = (worth > 0) & (costs <= 0)
    limit -= int(costs[chosen].sum())
    order = np.argsort(-worth / np.maximum(costs, 1), kind="stable")
    order = order[(worth[order] > 0) & (costs[order] > 0)]
    whole = int(np.searchsorted(np.cumsum(costs[order]), limit, side="right"))
    chosen[order[:whole]] = True
    left = limit - int(costs[order[:whole]].sum())
    for place in order[whole : whole + NEXT]:
        if costs[place] <= left:
            chosen[place] = True
            left -= int(costs[place])
    return chosen


def _knapsack(worth: Numbers, costs: NDArray[np.int64], limit: int) -> tuple[Chosen, float]:
    free: Chosen = (worth > 0) & (costs <= 0)  # full fine-tuning costs no more than LoRA there
    limit -= int(costs[free].sum())
    fits = (worth > 0) & (costs > 0) & (costs <= limit)
    if not fits.any():
        return free, float(worth[free].sum())
    count = int(fits.sum())
    zeros = np.zeros(count)
    picked = choose_options(
        Menu(
            modules=np.repeat(np.arange(count), 2),
            values=np.c_[zeros, worth[fits]].ravel(),
            costs=np.c_[zeros, costs[fits]].reshape(1, -1),
            limits=np.array([limit], dtype=np.float64),
        )
    )
    chosen: Chosen = free.copy()
    chosen[np.flatnonzero(fits)] = picked.picks % 2 == 1
    return chosen, picked.bound + float(worth[free].sum())
