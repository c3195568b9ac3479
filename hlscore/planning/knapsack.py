"""The multiple-choice knapsack: one option per module, the best sum of values that fits.

Every module has options (frozen, LoRA of some ranks, full), each with a value and costs; one
option per module is chosen so that the sum of values is the largest within every limit.
The Lagrangian dual settles most modules: an option whose reduced value misses the best of its
module by more than the gap between the dual bound and a known choice is in no best choice. HiGHS
decides about what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlscore.errors import BudgetError
from hlscore.planning.solver import RELATIVE_GAP, Numbers, Program, quiet_highs, solve

CUTS = 200
CORE = 60
DUAL_GAP = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Menu:
    """Options of all modules, those of one module side by side.

    Attributes:
        modules: Module of each option, rising from 0 without holes, int64 [options].
        values: Value of each option, float64 [options].
        costs: Cost of each option under each limit, float64 [limits, options].
        limits: Largest total costs, float64 [limits].
    """

    modules: NDArray[np.int64]
    values: Numbers
    costs: Numbers
    limits: Numbers

    @property
    def starts(self) -> NDArray[np.int64]:
        """First option of each module."""
        count = int(self.modules[-1]) + 1
        return np.searchsorted(self.modules, np.arange(count)).astype(np.int64)

    def fits(self, picks: NDArray[np.int64]) -> bool:
        """Whether a choice keeps every limit."""
        return bool((self.costs[:, picks].sum(axis=1) <= self.limits).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """One option per module.

    Attributes:
        picks: The chosen option of each module, int64 [modules].
        value: Sum of their values.
        bound: Upper bound of the value of any choice that fits.
    """

    picks: NDArray[np.int64]
    value: float
    bound: float


def choose_options(menu: Menu) -> Picked:
    """Choose one option per module.

    Returns:
        The best choice, to a relative gap of 1e-4 or as far as the solver came; `bound` says.
    """
    cheapest = _cheapest(menu)
    if not menu.fits(cheapest):
        raise BudgetError("Even the cheapest choice for every module exceeds the budget.")
    prices, dual = _dual(menu)
    known = _improve(menu, _round(menu, prices, cheapest))
    bound = dual
    # First among the options nearest to the prices: that leaves few for the proof.
    for nearest in (CORE, None):
        value = float(menu.values[known].sum())
        if bound - value <= RELATIVE_GAP * abs(bound):
            break
        kept = _worth_keeping(menu, prices, dual - value, known, nearest)
        solved, kept_bound = _solve_kept(menu, kept)
        found = known if solved is None else _improve(menu, solved)
        if menu.values[found].sum() > value:
            known = found
        if nearest is None:
            bound = min(bound, kept_bound)
    value = float(menu.values[known].sum())
    return Picked(picks=known, value=value, bound=max(value, bound))


def _first_best(menu: Menu, worth: Numbers) -> NDArray[np.int64]:
    """The first option of largest worth of each module."""
    best = np.maximum.reduceat(worth, menu.starts)
    hits = np.flatnonzero(worth == best[menu.modules])
    _, first = np.unique(menu.modules[hits], return_index=True)
    return hits[first].astype(np.int64)


def _cheapest(menu: Menu) -> NDArray[np.int64]:
    scale = np.maximum(np.abs(menu.limits), 1.0)
    return _first_best(menu, -(menu.costs / scale[:, None]).max(axis=0))


def _dual(menu: Menu) -> tuple[Numbers, float]:
    """Minimize the Lagrangian dual with cutting planes; gives the prices and the bound."""
    count = len(menu.limits)
    scale = np.maximum(np.abs(menu.limits), 1.0)
    costs, limits = menu.costs / scale[:, None], menu.limits / scale
    spread = float(np.ptp(menu.values)) or 1.0
    planes = _Planes(count, ceiling=spread * len(menu.starts))
    prices, best, best_prices = np.zeros(count), np.inf, np.zeros(count)
    for _ in range(CUTS):
        picks = _first_best(menu, menu.values - prices @ costs)
        slope = limits - costs[:, picks].sum(axis=1)
        height = float(menu.values[picks].sum() + prices @ slope)
        if height < best:
            best, best_prices = height, prices
        prices, lower = planes.lowest_with(prices, height, slope)
        if best - lower <= DUAL_GAP * max(abs(best), spread):
            break
    return best_prices / scale, best


class _Planes:
    """Planes that lie under the dual, and their lowest point: a linear program in a few numbers.

    Attributes:
        count: Number of prices.
    """

    def __init__(self, count: int, *, ceiling: float) -> None:
        import highspy

        self.count, self._unlimited = count, highspy.kHighsInf
        self._highs = quiet_highs()
        for _ in range(count):
            self._highs.addVar(0.0, ceiling)
        self._highs.addVar(-self._unlimited, self._unlimited)
        self._highs.changeColCost(count, 1.0)

    def lowest_with(self, point: Numbers, height: float, slope: Numbers) -> tuple[Numbers, float]:
        """Add the plane through a point of the dual; gives the new lowest point and its height."""
        size = self.count + 1
        indices, row = np.arange(size, dtype=np.int32), np.r_[-slope, 1.0]
        self._highs.addRow(float(height - slope @ point), self._unlimited, size, indices, row)
        self._highs.run()
        found = np.array(self._highs.getSolution().col_value)
        return found[: self.count], float(found[self.count])


def _round(menu: Menu, prices: Numbers, cheapest: NDArray[np.int64]) -> NDArray[np.int64]:
    """A choice that fits, near the one the prices point to."""
    picks = _first_best(menu, menu.values - prices @ menu.costs)
    over = menu.costs[:, picks].sum(axis=1) > menu.limits
    if not over.any():
        return picks
    # Give back the options that gain least for what they cost until all fits.
    relief = (menu.costs[:, picks] - menu.costs[:, cheapest])[over].sum(axis=0)
    loss = menu.values[picks] - menu.values[cheapest]
    order = np.argsort(np.where(relief > 0, loss / np.maximum(relief, 1e-300), np.inf))
    for place in order:
        if menu.fits(picks):
            break
        picks[place] = cheapest[place]
    return picks if menu.fits(picks) else cheapest.copy()


def _improve(menu: Menu, picks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Spend what is left, the largest gains first; repairs a choice that exceeds by a hair."""
    if not menu.fits(picks):
        picks = _shed(menu, picks, _cheapest(menu))
    spent = menu.costs[:, picks].sum(axis=1)
    gains = menu.values - menu.values[picks][menu.modules]
    extra = menu.costs - menu.costs[:, picks][:, menu.modules]
    left = menu.limits - spent
    inside = (gains > 0) & (extra <= left[:, None]).all(axis=0)
    for option in np.flatnonzero(inside)[np.argsort(-gains[inside], kind="stable")]:
        module = menu.modules[option]
        step = menu.costs[:, option] - menu.costs[:, picks[module]]
        if menu.values[option] > menu.values[picks[module]] and (spent + step <= menu.limits).all():
            picks[module] = option
            spent = spent + step
    return picks


def _shed(menu: Menu, picks: NDArray[np.int64], cheapest: NDArray[np.int64]) -> NDArray[np.int64]:
    loss = menu.values[picks] - menu.values[cheapest]
    for place in np.argsort(loss, kind="stable"):
        if menu.fits(picks):
            break
        picks[place] = cheapest[place]
    return picks


def _worth_keeping(
    menu: Menu, prices: Numbers, gap: float, known: NDArray[np.int64], nearest: int | None
) -> NDArray[np.bool_]:
    """Options that some choice better than the known one may hold, or the nearest of them."""
    reduced = menu.values - prices @ menu.costs
    best = np.maximum.reduceat(reduced, menu.starts)
    slack = 1e-9 * max(1e-300, float(np.abs(menu.values).max()))
    loss = best[menu.modules] - reduced
    most = max(gap, 0.0) + slack
    if nearest is not None:
        far = len(menu.starts) + nearest  # each module has an option without loss
        most = min(most, float(np.partition(loss, far)[far]) if far < len(loss) else most)
    kept: NDArray[np.bool_] = loss <= most
    kept[known] = True
    return kept


def _solve_kept(menu: Menu, kept: NDArray[np.bool_]) -> tuple[NDArray[np.int64] | None, float]:
    """Let HiGHS choose among the kept options; gives the choice and a bound."""
    options = np.flatnonzero(kept)
    counts = np.bincount(menu.modules[options])
    settled = options[counts[menu.modules[options]] == 1]
    open_ = options[counts[menu.modules[options]] > 1]
    base = float(menu.values[settled].sum())
    if not len(open_):
        return settled, base
    _, groups = np.unique(menu.modules[open_], return_inverse=True)
    program = Program(
        values=menu.values[open_],
        costs=menu.costs[:, open_],
        limits=menu.limits - menu.costs[:, settled].sum(axis=1),
        groups=groups.astype(np.int64),
    )
    try:
        solution = solve(program)
    except BudgetError:  # the node limit came before any choice: the known one stays
        return None, np.inf
    picks = np.concatenate([settled, open_[solution.chosen]])
    if len(picks) != len(menu.starts):
        return None, solution.bound + base
    return picks[np.argsort(menu.modules[picks])], solution.bound + base
