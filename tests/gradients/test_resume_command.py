"""Runs that are killed, interrupted and resumed from the command line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from console import hlscore

QUICK = (
    "--samples", "40", "--bootstrap", "20", "--batch-size", "2", "--rank", "4",
    "--movement", "gradient",
)  # fmt: skip
SAVING = ("--save-every", "0.00001")  # minutes: after every batch, however fast the machine is


RESULTS = ["plan.json", "scores.parquet"]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hlscore", "rank", "builtin:tiny", *QUICK, *SAVING, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_progress(folder: Path, process: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + 120
    while not list(folder.glob(".hlscore-progress-*.safetensors")):
        assert process.poll() is None, "it ended before it stored any progress"
        assert time.monotonic() < ends
        time.sleep(0.005)


@pytest.mark.parametrize(
    "options", [("--estimator", "exact"), ("--estimator", "sketch", "--sketch-size", "16")]
)
def test_killed_run_resumes_to_the_same_files(tmp_path: Path, options: tuple[str, ...]) -> None:
    run = ("rank", "builtin:tiny", *QUICK, *SAVING, *options, "-o")
    killed = start(tmp_path, *options, "-o", "killed")
    wait_for_progress(tmp_path / "killed", killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert hlscore(*run, tmp_path / "whole").code == 0
    assert not [path.name for path in (tmp_path / "killed").iterdir() if path.suffix == ".json"]

    refused = hlscore(*run, tmp_path / "killed")
    assert refused.code == 2
    assert "holds an unfinished run" in refused.message
    resumed = hlscore(*run, tmp_path / "killed", "--resume")
    assert resumed.code == 0, resumed.err
    whole, again = tmp_path / "whole", tmp_path / "killed"
    assert (whole / "plan.json").read_bytes() == (again / "plan.json").read_bytes()
    tables = [pq.read_table(folder / "scores.parquet") for folder in (whole, again)]
    assert tables[0].equals(tables[1])
    assert files(again) == RESULTS


KILLED_WHILE_IT_WRITES = """
import os, signal, sys
from pathlib import Path
from hlscore.gradients import progress

def killed(tensors, path, metadata, calls=[]):
    # safetensors writes to a file of its own naming beside the one that is asked for.
    calls.append(path)
    if len(calls) == 3:
        Path(path).with_name(".tmpAbC123").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    real(tensors, path, metadata=metadata)

real, progress.save_file = progress.save_file, killed
progress._LARGEST_SHARE = float("inf")  # however long a write takes, the next batch writes again
from hlscore.cli.main import main
main()
"""


def test_nothing_stays_of_a_run_that_was_killed_while_it_stored_progress(tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_IT_WRITES, "rank", "builtin:tiny", *QUICK, *SAVING,
         "-o", str(out)],
        check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in out.rglob(".tmp*")] == [".tmpAbC123"]
    # As if it had been killed once more, while it wrote its results.
    (out / ".hlscore-unfinished-x1").mkdir()
    (out / ".hlscore-unfinished-x1" / "scores.parquet").write_bytes(b"half")
    shutil.copytree(out, tmp_path / "copy")
    for folder, go_on in ((out, "--resume"), (tmp_path / "copy", "--force")):
        assert hlscore("rank", "builtin:tiny", *QUICK, "-o", folder, go_on).code == 0
        assert files(folder) == RESULTS


def test_ctrl_c_keeps_the_progress_and_says_how_to_go_on(tmp_path: Path) -> None:
    running = start(tmp_path, "-o", "out")
    wait_for_progress(tmp_path / "out", running)
    running.send_signal(signal.SIGINT)
    shown, said = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "the progress is kept" in said
    assert "--resume" in said
    assert not shown
    other = hlscore(
        "rank", "builtin:tiny", *QUICK, "--seed", "1", "-o", tmp_path / "out", "--resume"
    )
    assert other.code == 2
    assert "is another one: settings.seed was 0, now it is 1" in other.message
    anew = hlscore(
        "rank", "builtin:tiny", "--samples", "8", *QUICK[2:], "-o", tmp_path / "out", "--force"
    )
    assert anew.code == 0
    assert files(tmp_path / "out") == RESULTS


def test_saving_off_stores_nothing(tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out", "--save-every", "0")
    assert hlscore("rank", "builtin:tiny", "--samples", "8", *QUICK[2:], *out).code == 0
    assert files(tmp_path / "out") == RESULTS
