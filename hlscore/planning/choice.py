"""Which modules a budget buys in full: the best sum of scores that fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlscore.planning.solver import Numbers, Program, solve

Chosen = NDArray[np.bool_]

CORE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What full fine-tuning of each module costs, and how much there is to spend.

    Attributes:
        costs: Cost of each module, int64 [n]: 1 under a budget of modules, else parameters or
            bytes beyond those of its alternative.
        limit: The most that may be spent.
        by_count: Whether every module costs the same.
    """

    costs: NDArray[np.int64]
    limit: int
    by_count: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Bought:
    """The modules that a budget buys.

    Attributes:
        chosen: Whether each module is bought, bool [n].
        bound: Upper bound of the total score of any choice that fits.
    """

    chosen: Chosen
    bound: float


def choose(scores: Numbers, spending: Spending) -> Bought:
    """Choose the modules to train in full.

    Modules whose score is zero, negative or unknown are never chosen: there is no measured
    gain to buy. Where all cost the same the best scores win; else the set of largest total
    score that fits is a 0/1 knapsack, solved by HiGHS to a relative gap of 1e-5.

    Args:
        scores: Score of each candidate, NaN where unknown, float64 [n], the best first.
        spending: Costs and limit.

    Returns:
        The choice.
    """
    worth = _worth(scores)
    if spending.by_count:
        chosen = _highest(worth, spending.limit)
        return Bought(chosen=chosen, bound=float(worth[chosen].sum()))
    return _knapsack(worth, spending.costs, spending.limit)


def selection_probability(replicates: Numbers, spending: Spending) -> Numbers:
    """Share of bootstrap resamples in which each module is chosen.

    Where costs differ each resample solves the core of its knapsack: modules far from the
    break-even score per cost are settled by it, HiGHS decides about the 100 nearest.

    Args:
        replicates: Scores of each candidate in each resample, float64 [n, resamples].
        spending: Costs and limit.

    Returns:
        float64 [n], between 0 and 1.
    """
    counts = np.zeros(len(replicates))
    for scores in replicates.T:
        worth = _worth(scores)
        if spending.by_count:
            counts += _highest(worth, spending.limit)
        else:
            counts += _core_knapsack(worth, spending.costs, spending.limit)
    shares: Numbers = counts / replicates.shape[1]
    return shares


def _worth(scores: Numbers) -> Numbers:
    return np.where(np.isfinite(scores) & (scores > 0), scores, 0.0)


def _highest(worth: Numbers, limit: int) -> Chosen:
    chosen: Chosen = np.zeros(len(worth), dtype=np.bool_)
    chosen[np.argsort(-worth, kind="stable")[:limit]] = True
    return chosen & (worth > 0)


def _core_knapsack(worth: Numbers, costs: NDArray[np.int64], limit: int) -> Chosen:
    """Settle all but the modules around the break-even one (Balas and Zemel 1980)."""
    order = np.argsort(-worth / np.maximum(costs, 1), kind="stable")
    break_even = int(np.searchsorted(np.cumsum(costs[order]), limit, side="right"))
    first, last = max(0, break_even - CORE // 2), break_even + CORE // 2
    chosen: Chosen = np.zeros(len(worth), dtype=np.bool_)
    chosen[order[:first]] = True
    core = order[first:last]
    chosen[core] = _knapsack(worth[core], costs[core], limit - int(costs[chosen].sum())).chosen
    return chosen & (worth > 0)


def _knapsack(worth: Numbers, costs: NDArray[np.int64], limit: int) -> Bought:
    free: Chosen = (worth > 0) & (costs <= 0)  # full fine-tuning costs no more than LoRA there
    limit -= int(costs[free].sum())
    fits = (worth > 0) & (costs > 0) & (costs <= limit)
    if not fits.any():
        return Bought(chosen=free, bound=float(worth[free].sum()))
    if int(costs[fits].sum()) <= limit:
        return Bought(chosen=free | fits, bound=float(worth[free | fits].sum()))
    solution = solve(
        Program(
            values=worth[fits],
            costs=costs[None, fits].astype(np.float64),
            limits=np.array([limit], dtype=np.float64),
        )
    )
    chosen: Chosen = np.zeros(len(worth), dtype=np.bool_)
    chosen[np.flatnonzero(fits)[solution.chosen]] = True
    while int(costs[chosen].sum()) > limit:  # the solver's tolerance let a hair too much in
        inside = np.flatnonzero(chosen)
        chosen[inside[np.argmin(worth[inside] / costs[inside])]] = False
    return Bought(chosen=free | chosen, bound=solution.bound + float(worth[free].sum()))
