"""Which modules a budget buys: the best sum of scores that fits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hlscore.errors import BudgetError
from hlscore.planning.budget import Budget

Chosen = NDArray[np.bool_]

RELATIVE_GAP = 1e-6
CORE = 100


def choose(scores: NDArray[np.float64], params: NDArray[np.int64], budget: Budget) -> Chosen:
    """Choose the modules to train in full.

    Modules whose score is zero, negative or unknown are never chosen: there is no measured
    gain to buy. Under a budget of modules the best scores win; under a budget of parameters
    the set of largest total score that fits is a 0/1 knapsack, solved by HiGHS to a relative
    gap of 1e-6.

    Args:
        scores: Score of each candidate, NaN where unknown, float64 [n], the best first.
        params: Parameters of each candidate, int64 [n].
        budget: The budget.

    Returns:
        Whether each candidate is chosen, bool [n].

    Raises:
        BudgetError: The budget allows no module at all.
    """
    limit = budget.limit([int(size) for size in params])
    worth = _worth(scores)
    if budget.unit == "modules":
        return _highest(worth, limit)
    return _knapsack(worth, params, limit)


def selection_probability(
    replicates: NDArray[np.float64], params: NDArray[np.int64], budget: Budget
) -> NDArray[np.float64]:
    """Share of bootstrap resamples in which each module is chosen.

    Under a budget of parameters each resample solves the core of its knapsack: modules far from
    the break-even score per parameter are settled by it, HiGHS decides about the 100 nearest.

    Args:
        replicates: Scores of each candidate in each resample, float64 [n, resamples].
        params: Parameters of each candidate, int64 [n].
        budget: The budget.

    Returns:
        float64 [n], between 0 and 1.
    """
    counts = np.zeros(len(params))
    limit = budget.limit([int(size) for size in params])
    for scores in replicates.T:
        worth = _worth(scores)
        if budget.unit == "modules":
            counts += _highest(worth, limit)
        else:
            counts += _core_knapsack(worth, params, limit)
    shares: NDArray[np.float64] = counts / replicates.shape[1]
    return shares


def _worth(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isfinite(scores) & (scores > 0), scores, 0.0)


def _highest(worth: NDArray[np.float64], limit: int) -> Chosen:
    chosen: Chosen = np.zeros(len(worth), dtype=np.bool_)
    chosen[np.argsort(-worth, kind="stable")[:limit]] = True
    return chosen & (worth > 0)


def _core_knapsack(worth: NDArray[np.float64], params: NDArray[np.int64], limit: int) -> Chosen:
    """Settle all but the modules around the break-even one (Balas and Zemel 1980)."""
    order = np.argsort(-worth / params, kind="stable")
    break_even = int(np.searchsorted(np.cumsum(params[order]), limit, side="right"))
    first, last = max(0, break_even - CORE // 2), break_even + CORE // 2
    chosen: Chosen = np.zeros(len(worth), dtype=np.bool_)
    chosen[order[:first]] = True
    core = order[first:last]
    chosen[core] = _knapsack(worth[core], params[core], limit - int(params[chosen].sum()))
    return chosen & (worth > 0)


def _knapsack(worth: NDArray[np.float64], params: NDArray[np.int64], limit: int) -> Chosen:
    if not worth.any():
        return np.zeros(len(worth), dtype=np.bool_)
    # Imported here: it takes longer to load than every other part of a plan.
    from scipy.optimize import Bounds, LinearConstraint, milp

    scale = float(params.max())
    solution = milp(
        -worth / worth.max(),
        integrality=np.ones(len(worth)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(params / scale, ub=limit / scale),
        options={"mip_rel_gap": RELATIVE_GAP, "presolve": False},  # it costs 10 x what it saves
    )
    if solution.x is None:
        raise BudgetError(f"The solver found no plan: {solution.message}")
    chosen: Chosen = (solution.x > 0.5) & (worth > 0)
    while int(params[chosen].sum()) > limit:  # the solver's tolerance let a hair too much in
        inside = np.flatnonzero(chosen)
        chosen[inside[np.argmin(worth[inside] / params[inside])]] = False
    return chosen
