"""What a run found: a report that says how it was made, the plan, and the files of both."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hlscore._version import __version__
from hlscore.artifacts.files import PLAN_FILE, ROLLOUTS_FILE, SCORES_FILE, check_folder, write_files
from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import write_plan
from hlscore.artifacts.report import to_pandas, write_report
from hlscore.planning.make_plan import make_plan
from hlscore.records import (
    Candidate,
    GradientStatistics,
    ModelIdentity,
    ModuleRow,
    ProbeSummary,
    RunInfo,
    ScoreReport,
    WeightStatistics,
)
from hlscore.rollouts.records import RolloutSet, write_rollouts
from hlscore.scores.registry import find_score
from hlscore.scores.rows import build_rows, order_rows
from hlscore.settings import RankSettings

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """What a run found."""

    report: ScoreReport  # content of `scores.parquet`
    plan: Plan  # content of `plan.json`
    rollouts: RolloutSet | None = None  # completions that the model sampled, if it did

    def __repr__(self) -> str:
        """What it is, without its thousands of numbers."""
        totals, name = self.plan.totals, self.report.model.model
        full = f"{totals.full_modules} of {totals.candidate_modules} modules in full"
        return f"RankResult({name!r}, {full}, by {self.plan.score.name})"

    @property
    def rows(self) -> tuple[ModuleRow, ...]:
        """Rows of the report, the best first."""
        return self.report.rows

    @property
    def full_modules(self) -> tuple[str, ...]:
        """Names of the modules to train in full, the best first."""
        return tuple(item.module for item in self.plan.full)

    def to_pandas(self) -> pd.DataFrame:
        """The report as a pandas frame."""
        return to_pandas(self.report)

    def save(self, folder: str | Path, *, force: bool = False) -> dict[str, Path]:
        """Write `scores.parquet` and `plan.json`, and `rollouts.jsonl` where some were sampled."""
        target, rollouts = Path(folder), self.rollouts
        writers: dict[str, Callable[[Path], None]] = {
            SCORES_FILE: lambda path: write_report(self.report, path),
            PLAN_FILE: lambda path: write_plan(self.plan, path),
        }
        if rollouts is not None:
            writers[ROLLOUTS_FILE] = lambda path: write_rollouts(rollouts, path)
        check_folder(target, tuple(writers), force=force)
        return write_files(target, writers)


def result_of(
    settings: RankSettings,
    modules: Sequence[Candidate],
    model: ModelIdentity,
    probes: ProbeSummary,
    *,
    ranks: tuple[int, ...],
    statistics: Mapping[str, GradientStatistics] | None = None,
    weights: Mapping[str, WeightStatistics] | None = None,
    seconds: float,
    estimator: str = "none",
    device: torch.device,
    dtype: str,
    sketch_size: int | None = None,
    trial_rate: float | None = None,
    trial_steps: int | None = None,
    notes: tuple[str, ...] = (),
    rollouts: RolloutSet | None = None,
) -> RankResult:
    """Score modules by the statistics of their gradients, updates or weights, and plan.

    Args:
        ranks: Ranks of the tail curves.
    """
    plan = settings.plan
    rows = build_rows(
        modules,
        ranks=ranks,
        rank=plan.rank,
        seed=settings.seed,
        statistics=statistics,
        weights=weights,
        trained=bool(settings.updates),
    )
    report = ScoreReport(
        rows=order_rows(rows, find_score(plan.score), plan.rank),
        model=model,
        probes=probes,
        run=RunInfo(
            hlscore_version=__version__,
            settings=asdict(settings),
            seed=settings.seed,
            score=plan.score,
            rank=plan.rank,
            estimator=estimator,
            sketch_size=sketch_size,
            trial_rate=trial_rate,
            trial_steps=trial_steps,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            dtype=dtype,
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "transformers", "datasets", "numpy")},
            },
            wall_seconds=round(seconds, 3),
            notes=notes,
        ),
    )
    allocated = make_plan(report, plan)
    shares = {item.module: item.selection_probability for item in allocated.modules}
    ordered = tuple(
        row.changed(selection_probability=shares.get(row.module)) for row in report.rows
    )
    return RankResult(report=replace(report, rows=ordered), plan=allocated, rollouts=rollouts)
