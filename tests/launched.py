"""Runs of two processes that torchrun starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from problems import by_module, differing

from hlscore.artifacts.report import read_report

QUICK = (
    "--samples", "64", "--bootstrap", "20", "--rank", "4", "--sketch-size", "16", "--movement",
    "gradient",
)  # fmt: skip


TORCHRUN = (
    sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
    "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
)  # fmt: skip
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def torchrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes."""
    return subprocess.run(
        [*TORCHRUN, *arguments],
        cwd=folder,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def together(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Rank the built-in model in two processes."""
    return torchrun(folder, "-m", "hlscore", "rank", "builtin:tiny", *QUICK, *arguments)


def assert_alike(one: Path, two: Path) -> None:
    """Both folders hold the same scores, but for the order in which sums were taken."""
    expected, found = (by_module(read_report(each / "scores.parquet").rows) for each in (one, two))
    assert all(row.grad_energy for row in expected.values())
    assert not differing(found, expected, 1e-5, floor=1e-5)
    assert not differing(found, expected, 1e-5, "weight_norm")
