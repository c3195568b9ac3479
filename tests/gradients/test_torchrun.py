"""Several processes started by torchrun: shared probes, shared weights."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from console import hlscore
from launched import ENVIRONMENT, QUICK, TORCHRUN, assert_alike, together

from hlscore.artifacts.report import read_report


@pytest.mark.parametrize(
    "options",
    [("--estimator", "exact"), ("--estimator", "sketch", "--shard")],
    ids=" ".join,
)
def test_two_processes_find_what_one_finds(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = together(tmp_path, *options, "-o", "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("probe examples from") == 1  # one process prints
    plain = [option for option in options if option != "--shard"]
    assert hlscore("rank", "builtin:tiny", *QUICK, *plain, "-o", tmp_path / "one").code == 0
    assert_alike(tmp_path / "one", tmp_path / "two")
    first, second = (read_report(tmp_path / name / "scores.parquet") for name in ("one", "two"))
    assert first.model == second.model
    assert first.probes.mean_loss == pytest.approx(second.probes.mean_loss, rel=1e-6)


def test_what_all_find_wrong_is_said_once(tmp_path: Path) -> None:
    done = together(tmp_path, "--data", "missing.jsonl", "-o", "out")
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "missing.jsonl" in done.stderr
    assert not (tmp_path / "out").exists()


def alive(pid: int) -> bool:
    """Whether a process runs, and is more than an entry that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_workers_end_when_their_launcher_is_killed(tmp_path: Path) -> None:
    launcher = subprocess.Popen(
        [
            *TORCHRUN, "-m", "hlscore", "rank", "builtin:tiny", *QUICK[2:], "--samples", "256",
            "--batch-size", "1", "--save-every", "0.001", "-o", "out",
        ],
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ends = time.monotonic() + 120
        while not list(tmp_path.glob("out/.hlscore-progress-*")):
            assert launcher.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.05)
        listed = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
        workers = [int(pid) for pid in listed.split()]
        assert len(workers) == 2
    finally:
        launcher.kill()
        launcher.wait()
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert not (tmp_path / "out" / "plan.json").exists()


ENDING = """
import atexit, threading
import torch
def busy():
    numbers = torch.ones(100)
    while True:
        numbers + numbers
threading.Thread(target=busy, daemon=True).start()
atexit.register(print, "and its handlers ran")
from hlscore.cli.main import main
main()
"""


def test_a_process_of_several_ends_well_beside_threads_of_torch() -> None:
    # One that takes the lock of the interpreter while that goes down aborts the process.
    done = subprocess.run(
        [sys.executable, "-c", ENDING, "--version"],
        env=os.environ | ENVIRONMENT | {"WORLD_SIZE": "2", "RANK": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("hlscore ")
    assert done.stdout.endswith("and its handlers ran\n")


def test_shards_that_cannot_be_are_refused(tmp_path: Path) -> None:
    found = hlscore("rank", "builtin:tiny", *QUICK, "--shard", "-o", tmp_path / "out")
    assert found.code == 2
    assert "there is one" in found.message
    dry = hlscore("rank", "builtin:tiny", *QUICK, "--shard", "--dry-run", "-o", tmp_path / "out")
    assert dry.code == 0
    assert "sharded weights hold no gradients" in dry.out
    assert "would be refused: --shard" in dry.err
    done = together(tmp_path, "--shard", "--estimator", "exact", "-o", "out")
    assert done.returncode != 0
    assert "is sharded and can hold no gradient" in done.stderr
