"""Runs of two processes that torchrun starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from problems import by_module

from hlscore.artifacts.report import read_report

QUICK = (
    "--samples", "64", "--bootstrap", "20", "--rank", "4", "--sketch-size", "16", "--movement",
    "gradient",
)  # fmt: skip


def together(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
            "-m", "hlscore", "rank", "builtin:tiny", *QUICK, *arguments,
        ],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip


def assert_alike(one: Path, two: Path) -> None:
    """Both folders hold the same scores, but for the order in which sums were taken."""
    expected, found = (by_module(read_report(each / "scores.parquet").rows) for each in (one, two))
    assert expected.keys() == found.keys()
    for name, row in found.items():
        energy = expected[name].grad_energy or 0.0
        assert energy > 0
        assert row.grad_energy == pytest.approx(energy, rel=1e-5)
        assert row.tail_energy == pytest.approx(expected[name].tail_energy, rel=1e-5)
        assert row.hls == pytest.approx(expected[name].hls, rel=1e-5, abs=1e-5 * energy)
        assert row.weight_norm == pytest.approx(expected[name].weight_norm, rel=1e-5)
