"""What every report says of its run, and the last column that only a plan can fill."""

from __future__ import annotations

import platform
from dataclasses import asdict, replace
from importlib.metadata import version

import torch

from hlscore._version import __version__
from hlscore.planning.allocation import Allocation
from hlscore.records import RunInfo, ScoreReport
from hlscore.settings import RankSettings


def run_info(
    settings: RankSettings,
    *,
    seconds: float,
    estimator: str,
    device: torch.device,
    dtype: str,
    sketch_size: int | None = None,
    notes: tuple[str, ...] = (),
) -> RunInfo:
    """Say where and how a report was made.

    Args:
        settings: Settings of the run.
        seconds: How long it took.
        estimator: How gradients were captured; `none` without probes.
        device: Device that computed.
        dtype: Dtype of the weights.
        sketch_size: Columns of a sketch; `None` without sketches.
        notes: Remarks on the run.

    Returns:
        What the report says.
    """
    return RunInfo(
        hlscore_version=__version__,
        settings=asdict(settings),
        seed=settings.seed,
        score=settings.plan.score,
        rank=settings.plan.rank,
        estimator=estimator,
        sketch_size=sketch_size,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        dtype=dtype,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "datasets", "numpy")},
        },
        wall_seconds=round(seconds, 3),
        notes=notes,
    )


def with_selection(report: ScoreReport, allocation: Allocation) -> ScoreReport:
    """Put the selection probabilities of a plan into the rows of its report."""
    shares = {item.row.module: item.row.selection_probability for item in allocation.decisions}
    rows = tuple(row.changed(selection_probability=shares.get(row.module)) for row in report.rows)
    return replace(report, rows=rows)
