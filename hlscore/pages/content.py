"""What a report page shows: scores joined with a plan, and the figures worked out from both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hlscore.artifacts.plan import Plan, PlanMemory
from hlscore.errors import ArtifactError, UsageError
from hlscore.planning.make_plan import make_plan
from hlscore.planning.memory import Choice
from hlscore.records import ModuleRow, ScoreReport
from hlscore.scores.registry import Score, find_score, replicates_at, score_of
from hlscore.scores.rows import INTERVAL, interval, order_rows, standard_error
from hlscore.settings import PlanSettings

Unit = Literal["modules", "parameters"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line(Choice):
    """One candidate with its score and what the plan does with it."""

    row: ModuleRow  # the module, with its place by the plan's score
    locked: bool
    score: float | None  # value of the plan's score; `None` where it has none
    stderr: float | None  # its standard error; `None` without resamples at the plan's rank
    low: float | None  # its 95 % interval
    high: float | None
    chosen: float | None  # share of resamples in which the module is trained in full
    remark: str

    @property
    def full(self) -> bool:
        """Whether the module is trained in full."""
        return self.mode == "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class CumulativeScores:
    """Share of all positive scores in the best modules."""

    taken: tuple[float, ...]  # share of the modules, or of their parameters, rising from 0 to 1
    held: tuple[float, ...]  # share of the sum of positive scores in the best modules up to there
    low: tuple[float, ...]  # 95 % band over resamples; empty without them
    high: tuple[float, ...]
    plan_taken: float  # share that the plan trains in full
    plan_held: float  # share of the sum in those modules

    def at(self, share: float) -> float:
        """Share held at a share taken, by linear interpolation."""
        return float(np.interp(share, self.taken, self.held))


USES: dict[str, Callable[[PlanMemory], int]] = {
    "frozen weights": lambda use: use.frozen_bytes,
    "copies that PEFT keeps": lambda use: use.copy_bytes,
    "trained weights": lambda use: use.full_bytes + use.adapter_bytes,
    "gradients": lambda use: use.gradient_bytes,
    "optimizer state": lambda use: use.optimizer_bytes,
    "activations (estimate)": lambda use: use.activation_bytes,
}
"""Bytes of the training memory by use, under the names that a page shows."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything that a page shows."""

    report: ScoreReport
    plan: Plan
    score: Score
    lines: tuple[Line, ...]  # one per candidate, the best first
    skipped: tuple[ModuleRow, ...]  # rows that are no candidates
    # Resampled scores in the order of the lines, float64 [candidates, resamples]; no columns where
    # there are none for the plan's score and rank.
    replicates: NDArray[np.float64]
    planned_here: bool  # whether the plan was made for the page, not read

    @property
    def full_lines(self) -> tuple[Line, ...]:
        """Candidates that are trained in full."""
        return tuple(line for line in self.lines if line.full)

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
        """Cumulative scores in the order of the plan's score, at 200 points or fewer.

        The band keeps that order and adds up the positive part of each resample. Empty without a
        positive score.
        """
        if not self.any_positive:
            return {}
        gains = np.array([max(0.0, line.score or 0.0) for line in self.lines])
        full = np.array([line.full for line in self.lines])
        places = np.unique(np.linspace(0, len(gains), min(len(gains) + 1, 200)).astype(int))
        resampled = np.maximum(self.replicates, 0)
        resampled = resampled[:, resampled.sum(axis=0) > 0]
        low, high = np.zeros((2, 0))
        if resampled.shape[1] > 1:
            low, high = np.quantile(_running_shares(resampled)[places], INTERVAL, axis=1)
        costs: dict[Unit, NDArray[np.float64]] = {
            "modules": np.ones(len(gains)),
            "parameters": np.array([line.row.n_params for line in self.lines], float),
        }
        return {
            unit: CumulativeScores(
                taken=tuple(_running_shares(cost)[places].tolist()),
                held=tuple(_running_shares(gains)[places].tolist()),
                low=tuple(low.tolist()),
                high=tuple(high.tolist()),
                plan_taken=float(cost[full].sum() / cost.sum()),
                plan_held=float(gains[full].sum() / gains.sum()),
            )
            for unit, cost in costs.items()
        }

    @cached_property
    def ways(self) -> dict[str, Plan]:
        """The plan, LoRA of its rank on every module, and every module in full."""
        plan = self.plan
        # Of the baselines only the cost is shown, which no score decides.
        of_all = PlanSettings(score="random", rank=plan.lora.rank, memory=plan.settings.memory)
        return {
            "this plan": plan,
            f"LoRA {plan.lora.rank} everywhere": make_plan(
                self.report, replace(of_all, baseline="all-lora")
            ),
            "everything in full": make_plan(self.report, replace(of_all, baseline="all-full")),
        }


def _running_shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running sums over the first axis, from 0 to 1."""
    sums = np.cumsum(values, axis=0)
    return np.concatenate([np.zeros_like(sums[:1]), sums / sums[-1]])


def join(report: ScoreReport, plan: Plan, *, planned_here: bool) -> Content:
    """Join a plan with the scores of its model."""
    hint = "Give the plan that was made from these scores, or no plan."
    if plan.model.fingerprint.structure != report.model.fingerprint.structure:
        raise UsageError(
            f"The plan is for '{plan.model.name}', a model with other modules than "
            f"'{report.model.model}' of the scores.",
            hint=hint,
        )
    sizes = {row.module: row.n_params for row in report.candidates}
    for module in plan.modules:
        if sizes.get(module.module) != module.params:
            raise UsageError(
                f"The plan holds '{module.module}' with {module.params:,} parameters, which is not "
                "a candidate of the scores.",
                hint=hint,
            )
    score, rank = find_score(plan.score.name), plan.lora.rank
    rows = order_rows(report.rows, score, rank)
    candidates = [row for row in rows if row.is_candidate]
    if not candidates:
        raise ArtifactError("The report holds no candidate modules.")
    resamples = replicates_at(candidates, score, rank, report.run.rank)
    planned, lines = {item.module: item for item in plan.modules}, []
    for row, own in zip(candidates, resamples, strict=True):
        item, (low, high) = planned.get(row.module), interval(own)
        lines.append(
            Line(
                row=row,
                mode="frozen" if item is None else item.mode,  # a plan lists what it trains
                rank=0 if item is None else item.rank or 0,
                locked=item is not None and item.locked,
                score=score_of(row, score, rank),
                stderr=standard_error(own),
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
        replicates=np.array([own if len(own) > 1 else () for own in resamples]),
        planned_here=planned_here,
    )
