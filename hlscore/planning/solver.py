"""The one place that talks to HiGHS: small 0/1 programs, solved to a stated gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hlscore.errors import BudgetError

if TYPE_CHECKING:
    from highspy import Highs, HighsLp

RELATIVE_GAP = 1e-4
NODE_LIMIT = 5000

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Choose columns of the largest total value.

    Attributes:
        values: Value of each column, float64 [columns].
        costs: Cost of each column under each limit, float64 [limits, columns].
        limits: Largest total costs, float64 [limits].
        groups: Group of each column, rising from 0 without holes, int64 [columns]: exactly one
            column of each is chosen.
    """

    values: Numbers
    costs: Numbers
    limits: Numbers
    groups: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What HiGHS found.

    Attributes:
        chosen: Whether each column is chosen, bool [columns].
        bound: Upper bound of the value of any choice.
    """

    chosen: NDArray[np.bool_]
    bound: float


def solve(program: Program) -> Solution:
    """Solve a 0/1 program to a relative gap of 1e-4, or as far as 5,000 nodes lead.

    Returns:
        The choice; costs may exceed a limit by the tolerance of the solver (1e-6 of it).
    """
    highs = quiet_highs()
    for option, value in (
        ("mip_rel_gap", RELATIVE_GAP),
        ("mip_max_nodes", NODE_LIMIT),
        ("random_seed", 0),
    ):
        highs.setOptionValue(option, value)
    value_scale = float(np.abs(program.values).max()) or 1.0
    highs.passModel(_model(program, value_scale))
    highs.run()
    solution = highs.getSolution()
    if not solution.value_valid:
        status = highs.modelStatusToString(highs.getModelStatus())
        raise BudgetError(f"The solver found no plan within the budget: {status}.")
    bound = float(highs.getInfo().mip_dual_bound) * value_scale
    return Solution(chosen=np.array(solution.col_value) > 0.5, bound=bound)


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


def _model(program: Program, value_scale: float) -> HighsLp:
    import highspy

    columns, groups = len(program.values), int(program.groups[-1]) + 1
    scales = np.abs(program.costs).max(axis=1, initial=0.0)
    scales[scales == 0] = 1.0
    # One row per limit with all columns, then one row per group with its own.
    counts = [columns] * len(program.costs) + np.bincount(program.groups).tolist()
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = columns, len(counts)
    model.sense_ = highspy.ObjSense.kMaximize
    model.col_cost_ = program.values / value_scale
    model.col_lower_, model.col_upper_ = np.zeros(columns), np.ones(columns)
    model.integrality_ = [highspy.HighsVarType.kInteger] * columns
    unlimited = np.full(len(program.costs), -highspy.kHighsInf)
    model.row_lower_ = np.r_[unlimited, np.ones(groups)]
    model.row_upper_ = np.r_[program.limits / scales, np.ones(groups)]
    matrix = model.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    matrix.num_col_, matrix.num_row_ = columns, len(counts)
    matrix.start_ = np.r_[0, np.cumsum(counts)].astype(np.int32)
    matrix.index_ = np.tile(np.arange(columns), len(program.costs) + 1).astype(np.int32)
    matrix.value_ = np.r_[(program.costs / scales[:, None]).ravel(), np.ones(columns)]
    return model
