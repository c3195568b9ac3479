"""Runs of `rank --objective grpo` with a reward function that tells what it judged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from console import hlscore, write_rows

from hlscore.inputs.examples import BUILTIN_KNOWN, builtin_rows

GRPO = ("rank", "builtin:tiny", "--objective", "grpo")
QUICK = (
    "--generations", "4", "--generate-batch", "8", "--max-new-tokens", "12", "--bootstrap", "20",
    "--rank", "4",
)  # fmt: skip
MINE = (*GRPO, *QUICK, "--data", "prompts.jsonl", "--reward", "mine:judge")
PROMPTS = [row["prompt"] for row in builtin_rows(BUILTIN_KNOWN)[:8]]
FILES = ["plan.json", "rollouts.jsonl", "scores.parquet"]
JOURNAL = ".hlscore-progress-rollouts-0-of-1.jsonl"
# Stores which prompts it judged, and can be slow or fail at a chosen batch.
REWARD = """
import json, os, time
from pathlib import Path

calls = Path(__file__).parent / "calls.jsonl"

def judge(prompts, completions, **_):
    with calls.open("a") as file:
        file.write(json.dumps(prompts) + "\\n")
    number = len(calls.read_text().splitlines())
    if number == int(os.environ.get("FAIL_AT", "0")):
        raise ValueError("told to")
    if number >= int(os.environ.get("SLOW_FROM", "999")):
        time.sleep(10)
    return [len(text) % 4 / 2 for text in completions]
"""


def make_folder(tmp_path: Path) -> Path:
    """A working directory with a reward function and eight prompts: four batches."""
    (tmp_path / "mine.py").write_text(REWARD)
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    return tmp_path


def judged(folder: Path) -> list[list[str]]:
    """The prompts of each batch that was judged, and forgets them."""
    path = folder / "calls.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hlscore", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """Do not read to the end: what judges for it keeps the pipes until it notices."""
    process.kill()
    assert process.wait(timeout=120) == -signal.SIGKILL
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def wait(process: subprocess.Popen[str], until: Callable[[], object]) -> None:
    ends = time.monotonic() + 120
    while not until():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < ends
        time.sleep(0.005)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def table(folder: Path) -> Any:
    return pq.read_table(folder / "scores.parquet")


def same(one: Path, two: Path) -> None:
    """Both folders hold the same results, byte for byte but for times in the metadata."""
    for name in ("plan.json", "rollouts.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert table(one).equals(table(two))
    assert names(one) == names(two) == FILES


def undisturbed(folder: Path, *options: str) -> Path:
    done = hlscore(*MINE, *options, "-o", folder / "whole")
    assert done.code == 0, done.err
    batches = judged(folder)
    size = int(QUICK[3]) // int(QUICK[1])
    assert batches == [
        [prompt for prompt in PROMPTS[first : first + size] for _ in range(4)]
        for first in range(0, 8, size)
    ]
    return folder / "whole"
