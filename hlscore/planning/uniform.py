"""One LoRA rank for all, and full fine-tuning for some modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlscore.planning.knapsack import Menu, Numbers, choose_options
from hlscore.planning.memory import Choice, extra_use
from hlscore.planning.problem import Problem, Solution, free_bytes

Chosen = NDArray[np.bool_]
Costs = NDArray[np.int64]
# Modules that each resample looks at after the first that does not fit.
NEXT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """What can be done with each row: full fine-tuning, or else."""

    rest: tuple[Choice, ...]  # what is done with each row that is not chosen
    # Places of the rows that may be chosen, in groups that are chosen together.
    free: list[tuple[int, ...]]
    costs: Costs  # what full fine-tuning of each group takes of the budget [groups]
    left: int  # what of the budget is left for them

    def with_full(self, chosen: Chosen) -> tuple[Choice, ...]:
        """The chosen groups in full, and what is done with all other rows."""
        choices = list(self.rest)
        for group, taken in zip(self.free, chosen, strict=True):
            for place in group if taken else ():
                choices[place] = Choice(row=choices[place].row, mode="full")
        return tuple(choices)


def alternatives_of(problem: Problem) -> Alternatives:
    """Price full fine-tuning of every row against its alternative."""
    settings, budget = problem.settings, problem.budget

    def price(choice: Choice) -> int:
        if budget.unit == "bytes":
            return extra_use(choice, settings.memory).total_bytes
        if choice.mode != "full":
            return 0
        return 1 if budget.unit == "modules" else choice.row.n_params

    rest = tuple(problem.otherwise(row, settings.rank) for row in problem.rows)
    prices = [price(item) for item in rest]
    free, spent = problem.chosen_together(), sum(prices)
    if budget.unit == "bytes":
        limit = free_bytes(problem.report.model, budget, settings.memory, spent)
    else:
        limit = problem.limit
        if spent > limit:
            raise problem.asks_too_much(f"{spent:,} {budget.unit} in full", f"{limit:,}")
    extra = [
        price(Choice(row=row, mode="full")) - before
        for row, before in zip(problem.rows, prices, strict=True)
    ]
    costs = [sum(extra[place] for place in group) for group in free]
    return Alternatives(
        rest=rest, free=free, costs=np.array(costs, dtype=np.int64), left=limit - spent
    )


def choose_uniform(problem: Problem) -> Solution:
    """Full fine-tuning for the modules of the largest total score.

    The selection probability of a module is the share of bootstrap resamples that choose it.
    """
    given = alternatives_of(problem)
    costs, left = given.costs, given.left
    # The score and its resamples, summed over the rows of each group [groups, 1 + resamples].
    table = problem.without_lesser(np.c_[problem.values, np.array(problem.replicates)])
    chosen = np.zeros(len(given.free), dtype=np.bool_)
    value = bound = 0.0
    probability: list[float | None] = [None] * len(problem.rows)
    if given.free:
        places = [place for group in given.free for place in group]
        starts = np.cumsum([0, *map(len, given.free)])[:-1]
        sums = np.add.reduceat(table[places], starts, axis=0)
        problem.budget.check_one_fits([row.n_params for row in problem.rows])
        chosen, bound = choose(sums[:, 0], costs, left)
        value = float(sums[chosen, 0].sum())
        if all(problem.replicates):
            resampled = [best_per_cost(scores, costs, left) for scores in sums[:, 1:].T]
            shares = np.mean(resampled, axis=0).repeat([len(group) for group in given.free])
            for place, share in zip(places, shares.tolist(), strict=True):
                probability[place] = share
    return Solution(
        choices=given.with_full(chosen),
        solver="sorted" if (costs == 1).all() else "HiGHS",
        value=value,
        bound=bound,
        probability=tuple(probability),
    )


def choose(scores: Numbers, costs: Costs, limit: int) -> tuple[Chosen, float]:
    """Choose the modules to train in full: a 0/1 knapsack, solved to a relative gap of 1e-4.

    Modules whose score is zero, negative or unknown are never selected: no gain was measured.

    Args:
        scores: Score of each candidate, NaN where unknown, float64 [n], the best first.
        costs: Cost of each, int64 [n]: 1 under a budget of modules, else parameters or bytes
            beyond those of its alternative.
        limit: What they may cost together.

    Returns:
        Whether each is selected, and an upper bound of the total score of any choice that fits.
    """
    worth = np.where(np.isfinite(scores) & (scores > 0), scores, 0.0)
    if (costs == 1).all():
        chosen = best_per_cost(scores, costs, limit)
        return chosen, float(worth[chosen].sum())
    free: Chosen = (worth > 0) & (costs <= 0)  # full fine-tuning costs no more than LoRA there
    limit -= int(costs[free].sum())
    fits = np.flatnonzero((worth > 0) & (costs > 0) & (costs <= limit))
    total = float(worth[free].sum())
    if not len(fits):
        return free, total
    zeros = np.zeros(len(fits))
    picked = choose_options(
        Menu(
            modules=np.repeat(np.arange(len(fits)), 2),
            values=np.c_[zeros, worth[fits]].ravel(),
            costs=np.c_[zeros, costs[fits]].reshape(1, -1),
            limits=np.array([limit], dtype=np.float64),
        )
    )
    free[fits] = picked.picks % 2 == 1
    return free, picked.bound + total


def best_per_cost(scores: Numbers, costs: Costs, limit: int) -> Chosen:
    """Take the best score per cost first, then what still fits of the next 100.

    The best choice where all cost the same; else nearly, and fast enough for every resample.
    """
    worth = np.where(np.isfinite(scores) & (scores > 0), scores, 0.0)
    chosen: Chosen = (worth > 0) & (costs <= 0)
    limit -= int(costs[chosen].sum())
    order = np.argsort(-worth / np.maximum(costs, 1), kind="stable")
    order = order[(worth[order] > 0) & (costs[order] > 0)]
    whole = int(np.searchsorted(np.cumsum(costs[order]), limit, side="right"))
    chosen[order[:whole]] = True
    left = limit - int(costs[order[:whole]].sum())
    chosen[fill(order[whole : whole + NEXT], costs, left)] = True
    return chosen


def fill(order: Iterable[int], costs: Sequence[int] | Costs, limit: int) -> list[int]:
    """Places of what fits, taken one after the other."""
    taken = []
    for place in order:
        if costs[place] <= limit:
            limit -= int(costs[place])
            taken.append(place)
    return taken
