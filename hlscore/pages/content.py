"""What a page is made from: a score report joined with a plan, in the order of the plan's score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.errors import ArtifactError, UsageError
from hlscore.planning.memory import Mode
from hlscore.records import ModuleRow, ScoreReport
from hlscore.scores.registry import Score, find_score, replicates_at, score_of
from hlscore.scores.rows import CONFIDENCE, order_rows

Replicates = NDArray[np.float64]

INTERVAL = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One candidate with what the plan does with it.

    Attributes:
        row: The module, with its place by the plan's score.
        mode: `full`, `lora` or `frozen`.
        rank: LoRA rank; 0 unless the mode is `lora`.
        locked: Whether the mode was asked for.
        trained_params: Parameters that the mode trains.
        score: Value of the plan's score; `None` where it cannot be had.
        stderr: Its standard error; `None` without resamples at the plan's rank.
        low: Lower end of its 95 % interval.
        high: Upper end of its 95 % interval.
        chosen: Share of resamples in which the module is trained in full.
        remark: Anything the reader should know; mostly empty.
    """

    row: ModuleRow
    mode: Mode
    rank: int
    locked: bool
    trained_params: int
    score: float | None
    stderr: float | None
    low: float | None
    high: float | None
    chosen: float | None
    remark: str

    @property
    def full(self) -> bool:
        """Whether the module is trained in full."""
        return self.mode == "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Everything that a page says.

    Attributes:
        report: The scores.
        plan: The plan.
        score: The score that decides.
        lines: One per candidate, the best first.
        skipped: Rows that are no candidates.
        replicates: Resampled scores in the order of the lines, float64 [candidates, resamples];
            no columns where there are none for the plan's score and rank.
        planned_here: Whether the plan was made for the page, not read.
    """

    report: ScoreReport
    plan: Plan
    score: Score
    lines: tuple[Line, ...]
    skipped: tuple[ModuleRow, ...]
    replicates: Replicates
    planned_here: bool

    @property
    def full_lines(self) -> tuple[Line, ...]:
        """Candidates that are trained in full."""
        return tuple(line for line in self.lines if line.full)

    @property
    def clear(self) -> int | None:
        """Modules above zero with 95 % confidence; `None` where zero is no bound to exceed."""
        if self.score.name != "hls" or self.replicates.shape[1] < 2:
            return None
        return sum(line.low is not None and line.low > 0 for line in self.lines)

    @property
    def signal(self) -> bool:
        """Whether any score is above zero."""
        return any(line.score is not None and line.score > 0 for line in self.lines)

    @property
    def first_places_full(self) -> bool:
        """Whether exactly the modules of the first places are trained in full."""
        number = len(self.full_lines)
        return number > 0 and all(line.full for line in self.lines[:number])

    @property
    def other_probes(self) -> bool:
        """Whether the plan was made from other probes than the scores."""
        return self.plan.provenance.probes.hash != self.report.probes.hash


def join(report: ScoreReport, plan: Plan, *, planned_here: bool) -> Content:
    """Join a plan with the scores of its model."""
    _check_model(report, plan)
    score, rank = find_score(plan.score.name), plan.lora.rank
    rows = order_rows(report.rows, score, rank)
    candidates = [row for row in rows if row.is_candidate]
    if not candidates:
        raise ArtifactError("The report holds no candidate modules.")
    planned = {item.module: item for item in plan.modules}
    replicates = _replicates(candidates, score, rank, report.run.rank)
    spreads = _spreads(replicates)
    lines = tuple(
        _line(row, planned.get(row.module), score_of(row, score, rank), spread)
        for row, spread in zip(candidates, spreads, strict=True)
    )
    return Content(
        report=report,
        plan=plan,
        score=score,
        lines=lines,
        skipped=tuple(row for row in rows if not row.is_candidate),
        replicates=replicates,
        planned_here=planned_here,
    )


def _check_model(report: ScoreReport, plan: Plan) -> None:
    hint = "Give the plan that was made from these scores, or none: then one is made."
    if plan.model.fingerprint.structure != report.model.fingerprint.structure:
        raise UsageError(
            f"The plan is for '{plan.model.name}', a model with other modules than "
            f"'{report.model.model}', which the scores are of.",
            hint=hint,
        )
    sizes = {row.module: row.n_params for row in report.candidates}
    for item in plan.modules:
        if sizes.get(item.module) != item.params:
            raise UsageError(
                f"The plan holds '{item.module}' with {item.params:,} parameters, which is no "
                "candidate of the scores.",
                hint=hint,
            )


def _replicates(rows: Sequence[ModuleRow], score: Score, rank: int, run_rank: int) -> Replicates:
    found = replicates_at(rows, score, rank, run_rank)
    if len(found[0]) < 2:
        return np.zeros((len(rows), 0))
    return np.array(found, dtype=np.float64)


_Spread = tuple[float | None, float | None, float | None]


def _spreads(replicates: Replicates) -> list[_Spread]:
    """Standard error and both ends of the interval of each row."""
    if not replicates.shape[1]:
        return [(None, None, None)] * len(replicates)
    low, high = np.quantile(replicates, INTERVAL, axis=1)
    stderr = replicates.std(axis=1, ddof=1)
    return list(zip(stderr.tolist(), low.tolist(), high.tolist(), strict=True))


def _line(row: ModuleRow, item: PlanModule | None, score: float | None, spread: _Spread) -> Line:
    stderr, low, high = spread
    return Line(
        row=row,
        mode="frozen" if item is None else item.mode,  # what a plan does not list stays frozen
        rank=0 if item is None else item.rank or 0,
        locked=item is not None and item.locked,
        trained_params=0 if item is None else item.trained_params,
        score=score,
        stderr=stderr,
        low=low,
        high=high,
        chosen=None if item is None else item.selection_probability,
        remark=row.reason if item is None else item.remark,
    )
