"""Which modules a budget trains in full: the best sum of scores that fits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hlscore.planning.knapsack import Menu, choose_options
from hlscore.planning.solver import Numbers

Chosen = NDArray[np.bool_]

NEXT = 100


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
