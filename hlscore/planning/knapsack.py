"""The multiple-choice knapsack: one option per module, the best sum of values that fits.

Every module has options (frozen, LoRA of some ranks, full), each with a value and costs; one
option per module is chosen so that the sum of values is the largest within every limit.
The Lagrangian dual settles most modules: an option whose reduced value misses the best of its
module by more than the gap between the dual bound and a known choice is in no best choice. HiGHS
decides about what is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hlscore.errors import BudgetError

if TYPE_CHECKING:
    from highspy import Highs

RELATIVE_GAP = 1e-4
NODE_LIMIT = 5000
CUTS = 200
CORE = 60
DUAL_GAP = 1e-9

Numbers = NDArray[np.float64]
Picks = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Menu:
    """Options of all modules, those of one module side by side."""

    modules: NDArray[np.int64]  # module of each option, rising from 0 without holes [options]
    values: Numbers  # [options]
    costs: Numbers  # of each option under each limit [limits, options]
    limits: Numbers  # largest total costs [limits]

    @property
    def starts(self) -> NDArray[np.int64]:
        """First option of each module."""
        count = int(self.modules[-1]) + 1
        return np.searchsorted(self.modules, np.arange(count)).astype(np.int64)

    def fits(self, picks: Picks) -> bool:
        """Whether a choice keeps every limit."""
        return bool((self.costs[:, picks].sum(axis=1) <= self.limits).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """One option per module."""

    picks: Picks  # the chosen option of each module [modules]
    value: float  # sum of their values
    bound: float  # upper bound of the value of any choice that fits


def choose_options(menu: Menu) -> Picked:
    """The best choice, to a relative gap of 1e-4 or as far as the solver came; `bound` says."""
    scale = np.maximum(np.abs(menu.limits), 1.0)
    cheapest = _first_best(menu, -(menu.costs / scale[:, None]).max(axis=0))
    if not menu.fits(cheapest):
        # With two limits, what is cheapest for each module may not fit where another choice does.
        fitting, _ = _solve(menu, np.ones(len(menu.values), dtype=np.bool_))
        if fitting is None or not menu.fits(fitting):
            raise BudgetError("Even the cheapest choice for every module exceeds the budget.")
        cheapest = fitting
    prices, bound = _dual(menu, scale)
    reduced = menu.values - prices @ menu.costs
    picks = _first_best(menu, reduced)
    over = menu.costs[:, picks].sum(axis=1) > menu.limits
    # Give back the options that gain least for what they cost until all fits.
    relief = (menu.costs[:, picks] - menu.costs[:, cheapest])[over].sum(axis=0)
    loss = menu.values[picks] - menu.values[cheapest]
    order = np.argsort(np.where(relief > 0, loss / np.maximum(relief, 1e-300), np.inf))
    known = _improve(menu, _give_back(menu, picks, cheapest, order))
    # First among the options nearest to the prices: that leaves few for the proof.
    for nearest in (CORE, None):
        value = float(menu.values[known].sum())
        if bound - value <= RELATIVE_GAP * abs(bound):
            break
        kept = _worth_keeping(menu, reduced, bound - value, nearest)
        kept[known] = True
        found, kept_bound = _solve(menu, kept)
        if found is not None:
            # A choice of the solver may exceed a limit by a hair.
            order = np.argsort(menu.values[found] - menu.values[cheapest], kind="stable")
            found = _improve(menu, _give_back(menu, found, cheapest, order))
            known = found if menu.values[found].sum() > value else known
        if nearest is None:
            bound = min(bound, kept_bound)
    value = float(menu.values[known].sum())
    return Picked(picks=known, value=value, bound=max(value, bound))


def _first_best(menu: Menu, worth: Numbers) -> Picks:
    """The first option of largest worth of each module."""
    best = np.maximum.reduceat(worth, menu.starts)
    hits = np.flatnonzero(worth == best[menu.modules])
    _, first = np.unique(menu.modules[hits], return_index=True)
    return hits[first].astype(np.int64)


def _dual(menu: Menu, scale: Numbers) -> tuple[Numbers, float]:
    """Minimize the Lagrangian dual with cutting planes; gives the prices and the bound.

    The planes lie under the dual; their lowest point is a linear program in one number per limit.

    Args:
        scale: What the costs under each limit are divided by, float64 [limits].
    """
    import highspy

    count, unlimited = len(menu.limits), highspy.kHighsInf
    costs, limits = menu.costs / scale[:, None], menu.limits / scale
    spread = float(np.ptp(menu.values)) or 1.0
    planes = quiet_highs()
    for _ in range(count):
        planes.addVar(0.0, spread * len(menu.starts))
    planes.addVar(-unlimited, unlimited)
    planes.changeColCost(count, 1.0)
    indices = np.arange(count + 1, dtype=np.int32)
    prices, best, best_prices = np.zeros(count), np.inf, np.zeros(count)
    for _ in range(CUTS):
        picks = _first_best(menu, menu.values - prices @ costs)
        slope = limits - costs[:, picks].sum(axis=1)
        height = float(menu.values[picks].sum() + prices @ slope)
        if height < best:
            best, best_prices = height, prices
        row = np.r_[-slope, 1.0]
        planes.addRow(float(height - slope @ prices), unlimited, count + 1, indices, row)
        planes.run()
        *lowest, lower = planes.getSolution().col_value
        prices = np.array(lowest)
        if best - lower <= DUAL_GAP * max(abs(best), spread):
            break
    return best_prices / scale, best


def _give_back(menu: Menu, picks: Picks, cheapest: Picks, order: Picks) -> Picks:
    """A choice that fits: in the order, modules get their cheapest option until it does."""
    picks = picks.copy()
    for place in order:
        if menu.fits(picks):
            return picks
        picks[place] = cheapest[place]
    return picks if menu.fits(picks) else cheapest.copy()


def _improve(menu: Menu, picks: Picks) -> Picks:
    """Spend what a choice leaves, the largest gains first."""
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


def _worth_keeping(
    menu: Menu, reduced: Numbers, gap: float, nearest: int | None
) -> NDArray[np.bool_]:
    """Options that some choice better than the known one may hold, or the nearest of them.

    Args:
        reduced: Values less the prices of what the options cost, float64 [options].
        gap: How far the bound lies above the known choice.
    """
    best = np.maximum.reduceat(reduced, menu.starts)
    loss = best[menu.modules] - reduced
    most = max(gap, 0.0) + 1e-9 * max(1e-300, float(np.abs(menu.values).max()))
    if nearest is not None:
        far = len(menu.starts) + nearest  # each module has an option without loss
        most = min(most, float(np.partition(loss, far)[far]) if far < len(loss) else most)
    kept: NDArray[np.bool_] = loss <= most
    return kept


def _solve(menu: Menu, kept: NDArray[np.bool_]) -> tuple[Picks | None, float]:
    """The best choice among the kept options, by HiGHS, and an upper bound of its value.

    Returns:
        `None` where the node limit came before any choice. Costs may exceed a limit by the
        tolerance of the solver (1e-6 of it).
    """
    import highspy

    options = np.flatnonzero(kept)
    several = np.bincount(menu.modules[options])[menu.modules[options]] > 1
    settled, open_ = options[~several], options[several]
    base = float(menu.values[settled].sum())
    if not len(open_):
        return settled, base
    _, groups = np.unique(menu.modules[open_], return_inverse=True)
    values, costs = menu.values[open_], menu.costs[:, open_]
    limits = menu.limits - menu.costs[:, settled].sum(axis=1)
    value_scale = float(np.abs(values).max()) or 1.0
    scales = np.abs(costs).max(axis=1, initial=0.0)
    scales[scales == 0] = 1.0
    # One row per limit with all columns, then one row per module with its own.
    columns, modules = len(open_), int(groups[-1]) + 1
    counts = [columns] * len(limits) + np.bincount(groups).tolist()
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = columns, len(counts)
    model.sense_ = highspy.ObjSense.kMaximize
    model.col_cost_ = values / value_scale
    model.col_lower_, model.col_upper_ = np.zeros(columns), np.ones(columns)
    model.integrality_ = [highspy.HighsVarType.kInteger] * columns
    model.row_lower_ = np.r_[np.full(len(limits), -highspy.kHighsInf), np.ones(modules)]
    model.row_upper_ = np.r_[limits / scales, np.ones(modules)]
    matrix = model.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    matrix.num_col_, matrix.num_row_ = columns, len(counts)
    matrix.start_ = np.r_[0, np.cumsum(counts)].astype(np.int32)
    matrix.index_ = np.tile(np.arange(columns), len(limits) + 1).astype(np.int32)
    matrix.value_ = np.r_[(costs / scales[:, None]).ravel(), np.ones(columns)]
    highs = quiet_highs()
    highs.setOptionValue("mip_rel_gap", RELATIVE_GAP)
    highs.setOptionValue("mip_max_nodes", NODE_LIMIT)
    highs.setOptionValue("random_seed", 0)
    highs.passModel(model)
    highs.run()
    solution = highs.getSolution()
    if not solution.value_valid:
        return None, np.inf
    bound = float(highs.getInfo().mip_dual_bound) * value_scale + base
    picks = np.concatenate([settled, open_[np.array(solution.col_value) > 0.5]])
    if len(picks) != len(menu.starts):
        return None, bound
    return picks[np.argsort(menu.modules[picks])], bound


def quiet_highs() -> Highs:
    """A solver that prints nothing, also not while it is made."""
    # Imported here: commands that solve nothing do without it.
    import highspy

    class Quiet(highspy.Highs):
        def enableCallbacks(self) -> None:  # noqa: N802 - HiGHS prints its name here
            self.silent()
            super().enableCallbacks()  # type: ignore[no-untyped-call]

    highs = Quiet()  # type: ignore[no-untyped-call]
    highs.setOptionValue("threads", 1)  # all solvers of a process share one set of threads
    return highs
