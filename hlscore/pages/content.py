"""What a report page shows: scores joined with a plan, and the figures worked out from both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hlscore.artifacts.plan import Plan
from hlscore.errors import ArtifactError, UsageError
from hlscore.planning.memory import Choice, MemoryUse, Mode, memory_use
from hlscore.reasons import tied_modules
from hlscore.records import ModuleRow, ScoreReport
from hlscore.scores.registry import Score, find_score, replicates_at, score_of
from hlscore.scores.rows import CONFIDENCE, order_rows

INTERVAL = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)

Unit = Literal["modules", "parameters"]

_CURVE_POINTS = 200
_HINT = "Give the plan that was made from these scores, or no plan."


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One candidate with what the plan does with it.

    Attributes:
        row: The module, with its place by the plan's score.
        rank: LoRA rank; 0 unless the mode is `lora`.
        score: Value of the plan's score; `None` where it has none.
        stderr: Its standard error; `None` without resamples at the plan's rank.
        low: Lower end of its 95 % interval.
        chosen: Share of resamples in which the module is trained in full.
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
class CumulativeScores:
    """Share of all positive scores in the best modules.

    Attributes:
        taken: Share of the modules, or of their parameters, rising from 0 to 1.
        held: Share of the sum of positive scores in the best modules up to there.
        low: Lower end of the 95 % band over resamples; empty without them.
        high: Upper end of it.
        plan_taken: Share that the plan trains in full.
        plan_held: Share of the sum in those modules.
    """

    taken: tuple[float, ...]
    held: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    plan_taken: float
    plan_held: float

    def at(self, share: float) -> float:
        """Share held at a share taken, by linear interpolation."""
        return float(np.interp(share, self.taken, self.held))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCost:
    """Memory and trained parameters of the plan, or of what it is compared with."""

    name: str
    use: MemoryUse
    trained_params: int

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by use, under the names that a page shows."""
        use = self.use
        return {
            "frozen weights": use.frozen_bytes,
            "copies that PEFT keeps": use.copy_bytes,
            "trained weights": use.full_bytes + use.adapter_bytes,
            "gradients": use.gradient_bytes,
            "optimizer state": use.optimizer_bytes,
            "activations (estimate)": use.activation_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything that a page shows.

    Attributes:
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
    replicates: NDArray[np.float64]
    planned_here: bool

    @property
    def full_lines(self) -> tuple[Line, ...]:
        """Candidates that are trained in full."""
        return tuple(line for line in self.lines if line.full)

    @property
    def clear(self) -> int | None:
        """Modules above zero with 95 % confidence; `None` for scores that are never negative."""
        if self.score.name != "hls" or self.replicates.shape[1] < 2:
            return None
        return sum(line.low is not None and line.low > 0 for line in self.lines)

    @property
    def any_positive(self) -> bool:
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

    @cached_property
    def cumulative(self) -> dict[Unit, CumulativeScores]:
        """Cumulative scores over modules and over parameters; empty without a positive score."""
        units: tuple[Unit, ...] = ("modules", "parameters")
        return {unit: self._cumulated(unit) for unit in units} if self.any_positive else {}

    def _cumulated(self, unit: Unit) -> CumulativeScores:
        """Cumulative scores in the order of the plan's score, at 200 points or fewer.

        The band keeps that order and adds up the positive part of each resample.
        """
        gains = np.array([max(0.0, line.score or 0.0) for line in self.lines])
        costs = np.array(
            [line.row.n_params if unit == "parameters" else 1 for line in self.lines], float
        )
        points = min(len(gains) + 1, _CURVE_POINTS)
        places = np.unique(np.linspace(0, len(gains), points).astype(int))
        resampled = np.maximum(self.replicates, 0)
        resampled = resampled[:, resampled.sum(axis=0) > 0]
        low, high = np.zeros((2, 0))
        if resampled.shape[1] > 1:
            low, high = np.quantile(_running_shares(resampled)[places], INTERVAL, axis=1)
        full = np.array([line.full for line in self.lines])
        return CumulativeScores(
            taken=tuple(_running_shares(costs)[places].tolist()),
            held=tuple(_running_shares(gains)[places].tolist()),
            low=tuple(low.tolist()),
            high=tuple(high.tolist()),
            plan_taken=float(costs[full].sum() / costs.sum()),
            plan_held=float(gains[full].sum() / gains.sum()),
        )

    @cached_property
    def costs(self) -> tuple[TrainingCost, ...]:
        """The plan, LoRA of its rank on every module, and every module in full, run with PEFT."""
        plan, rank, tied = self.plan, self.plan.lora.rank, tied_modules(self.report.rows)
        rows = [line.row for line in self.lines]
        lora = [
            Choice(row=row, mode="frozen")
            if row.module in tied
            else Choice(row=row, mode="lora", rank=rank)
            for row in rows
        ]
        planned = [Choice(row=line.row, mode=line.mode, rank=line.rank) for line in self.lines]
        full = [Choice(row=row, mode="full") for row in rows]
        totals = plan.totals
        return tuple(
            TrainingCost(
                name=name,
                use=memory_use(self.report.model, choices, plan.settings.memory),
                trained_params=trained_params,
            )
            for name, choices, trained_params in (
                ("this plan", planned, totals.trained_params),
                (f"LoRA {rank} everywhere", lora, totals.plain_lora_params),
                ("everything in full", full, totals.candidate_params),
            )
        )


def _running_shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running sums over the first axis, from 0 to 1."""
    sums = np.cumsum(values, axis=0)
    return np.concatenate([np.zeros_like(sums[:1]), sums / sums[-1]])


def join(report: ScoreReport, plan: Plan, *, planned_here: bool) -> Content:
    """Join a plan with the scores of its model."""
    _check_model(report, plan)
    score, rank = find_score(plan.score.name), plan.lora.rank
    rows = order_rows(report.rows, score, rank)
    candidates = [row for row in rows if row.is_candidate]
    if not candidates:
        raise ArtifactError("The report holds no candidate modules.")
    planned = {item.module: item for item in plan.modules}
    found = replicates_at(candidates, score, rank, report.run.rank)
    replicates = np.array(found, dtype=np.float64)
    if len(found[0]) < 2:
        replicates = np.zeros((len(candidates), 0))
    lines = []
    for row, spread in zip(candidates, _spreads(replicates), strict=True):
        item, (stderr, low, high) = planned.get(row.module), spread
        lines.append(
            Line(
                row=row,
                mode="frozen" if item is None else item.mode,  # a plan lists what it trains
                rank=0 if item is None else item.rank or 0,
                locked=item is not None and item.locked,
                trained_params=0 if item is None else item.trained_params,
                score=score_of(row, score, rank),
                stderr=stderr,
                low=low,
                high=high,
                chosen=None if item is None else item.selection_probability,
                remark=row.reason if item is None else item.remark,
            )
        )
    return Content(
        report=report,
        plan=plan,
        score=score,
        lines=tuple(lines),
        skipped=tuple(row for row in rows if not row.is_candidate),
        replicates=replicates,
        planned_here=planned_here,
    )


def _check_model(report: ScoreReport, plan: Plan) -> None:
    if plan.model.fingerprint.structure != report.model.fingerprint.structure:
        raise UsageError(
            f"The plan is for '{plan.model.name}', a model with other modules than "
            f"'{report.model.model}' of the scores.",
            hint=_HINT,
        )
    sizes = {row.module: row.n_params for row in report.candidates}
    for item in plan.modules:
        if sizes.get(item.module) != item.params:
            raise UsageError(
                f"The plan holds '{item.module}' with {item.params:,} parameters, which is not a "
                "candidate of the scores.",
                hint=_HINT,
            )


def _spreads(
    replicates: NDArray[np.float64],
) -> Sequence[tuple[float | None, float | None, float | None]]:
    """Standard error and both ends of the 95 % interval of each row."""
    if not replicates.shape[1]:
        return [(None, None, None)] * len(replicates)
    low, high = np.quantile(replicates, INTERVAL, axis=1)
    stderr = replicates.std(axis=1, ddof=1)
    return list(zip(stderr.tolist(), low.tolist(), high.tolist(), strict=True))
