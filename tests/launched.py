"""Runs of two processes that torchrun starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hlscore.artifacts.report import read_report
from hlscore.records import ModuleRow

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


def rows(folder: Path) -> dict[str, ModuleRow]:
    return {row.module: row for row in read_report(folder / "scores.parquet").candidates}
