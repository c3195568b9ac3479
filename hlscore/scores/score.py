"""What a score is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hlscore.records import ModuleRow, RunInfo

ScoreFunction = Callable[[ModuleRow, int], float | None]
Needs = Literal["gradients", "whole gradients", "weights", "nothing"]


def _none(_row: ModuleRow) -> tuple[float, ...]:
    return ()


def _gradient_ranks(row: ModuleRow) -> tuple[int, ...]:
    return row.curve_ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A way to rank modules; higher means worse served by LoRA.

    Attributes:
        name: Name on the command line and column in the report.
        formula: Formula in plain text.
        unit: Unit of the value, from gradients where it is made of these.
        update_unit: Unit of the value where it is made of weight updates; empty for the same.
        source: Where it comes from.
        compute: Value of a row at a LoRA rank; `None` where it cannot be had.
        needs: What has to be read of a model: `gradients`, `whole gradients` (sketches do not
            do), `weights`, or `nothing`.
        replicates: Bootstrap replicates of a row, empty where there are none.
        follows_rank: Whether the value depends on the LoRA rank.
        leaves_over: Whether the value at rank r is what rank r leaves over of a gain: only such a
            score can choose a rank for each module.
        ranks: LoRA ranks at which a row holds the value, where that depends on the rank.
        resampled: Column of the report that the replicates come from; empty for none.
        caveat: What is known to be wrong with the value; mostly nothing.
    """

    name: str
    formula: str
    unit: str
    source: str
    compute: ScoreFunction
    needs: Needs = "gradients"
    update_unit: str = ""
    replicates: Callable[[ModuleRow], tuple[float, ...]] = _none
    follows_rank: bool = False
    leaves_over: bool = False
    ranks: Callable[[ModuleRow], tuple[int, ...]] = _gradient_ranks
    resampled: str = ""
    caveat: str = ""

    def unit_in(self, run: RunInfo) -> str:
        """Unit of the value in a run."""
        return self.update_unit if run.scores_updates and self.update_unit else self.unit

    @property
    def reads_weights(self) -> bool:
        """Whether it comes from the singular values of the weights."""
        return self.needs == "weights"

    @property
    def reads_gradients(self) -> bool:
        """Whether it needs probes."""
        return self.needs in ("gradients", "whole gradients")
