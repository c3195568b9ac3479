"""`rank --objective grpo` on the command line: what it writes; kills, failures, and resuming."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from console import hlscore, write_rows
from launched import QUICK as TINY
from launched import assert_alike, together

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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_folder(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run that nothing stops."""
    folder = make_folder(tmp_path_factory.mktemp("undisturbed"))
    with contextlib.chdir(folder):
        return undisturbed(folder)


def test_math_rewards_give_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = hlscore(
        *GRPO, "--reward", "math", "--samples", "12", *QUICK, "--max-new-tokens", "40", "-o", "out"
    )
    assert (first.code, first.err) == (0, "")
    shown = first.out
    assert names(tmp_path / "out") == FILES
    lines = [json.loads(x) for x in (tmp_path / "out/rollouts.jsonl").read_text().splitlines()]
    groups = len({line["group"] for line in lines})
    assert 6 < groups < 12  # answers in words are nothing for `math`, and not sampled for
    assert f"note: {12 - groups} prompts left out" in shown
    assert len(lines) == 4 * groups
    known = [line["reward"] for line in lines if line["reward"] is not None]
    assert {*known} == {0.0, 1.0}
    drawn = f"{4 * groups} completions of {groups} prompts from builtin:known"
    assert f"{drawn}, mean reward {sum(known) / len(known):.3g}" in shown
    assert "rollouts  out/rollouts.jsonl" in shown

    again = hlscore(
        *GRPO, "--rollouts", tmp_path / "out/rollouts.jsonl", "--bootstrap", "20", "--rank", "4",
        "-o", tmp_path / "again",
    )  # fmt: skip
    assert again.code == 0, again.err
    assert names(tmp_path / "again") == ["plan.json", "scores.parquet"]
    assert table(tmp_path / "out").equals(table(tmp_path / "again"))
    plans = [json.loads((tmp_path / name / "plan.json").read_text()) for name in ("out", "again")]
    assert plans[0]["modules"] == plans[1]["modules"]


def test_what_samples_nothing(folder: Path) -> None:
    done = hlscore(*MINE, "-o", folder / "out", "--dry-run")
    assert done.code == 0, done.err
    tokens = done.out.replace(",", "")
    assert str(8 * 4 * 12) in tokens  # as if every completion were as long as it may become
    found = hlscore(*MINE, "-o", folder / "out", "--resume")
    assert (found.code, "no unfinished run" in found.message) == (2, True)
    assert not (folder / "out").exists()
    kept = folder / "out" / "rollouts.jsonl"
    kept.parent.mkdir()
    kept.write_text("mine")
    found = hlscore(*MINE, "-o", folder / "out")
    assert found.code == 2
    assert kept.name in found.message
    assert "--force" in found.message
    assert (kept.read_text(), names(folder / "out")) == ("mine", [kept.name])
    assert judged(folder) == []


# Runs that are stopped


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_while_sampling(folder: Path, whole: Path, how: signal.Signals) -> None:
    """No finished group is sampled or judged again, and the results are those of a whole run."""
    stopped = start(folder, *MINE, "-o", "out", SLOW_FROM="3")
    journal = folder / "out" / JOURNAL
    calls = folder / "calls.jsonl"
    wait(stopped, lambda: calls.exists() and len(calls.read_text().splitlines()) == 3)
    if how == signal.SIGKILL:
        kill(stopped)
    else:
        stopped.send_signal(how)
        _, said = stopped.communicate(timeout=120)
        assert stopped.returncode == 130
        assert "Traceback" not in said
        assert "the progress is kept" in said
        assert "--resume" in said
    assert names(folder / "out") == [JOURNAL]
    stored = journal.read_bytes()
    assert stored.count(b"\n") == 1 + 4
    assert len(judged(folder)) == 3

    refused = hlscore(*MINE, "-o", folder / "out")
    assert refused.code == 2
    assert "holds an unfinished run" in refused.message
    for option, value, says in (
        ("--temperature", "0.5", "settings.objective.temperature was not set, now it is 0.5"),
        ("--seed", "3", "settings.seed was 0, now it is 3"),
        ("--generate-batch", "4", "settings.objective.generate_batch was 8, now it is 4"),
    ):
        other = hlscore(*MINE, option, value, "-o", folder / "out", "--resume")
        assert other.code == 2
        assert says in other.message
    write_rows(folder / "prompts.jsonl", [{"prompt": text, "more": 1} for text in PROMPTS])
    other = hlscore(*MINE, "-o", folder / "out", "--resume")
    assert "probes was sha256" in other.message
    write_rows(folder / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    assert journal.read_bytes() == stored
    assert judged(folder) == []

    done = hlscore(*MINE, "-o", folder / "out", "--resume")
    assert done.code == 0, done.err
    assert [batch[0] for batch in judged(folder)] == [PROMPTS[4], PROMPTS[6]]
    same(whole, folder / "out")


def test_killed_while_probing(folder: Path) -> None:
    slow = ("--batch-size", "1")
    whole = undisturbed(folder, *slow)
    killed = start(folder, *MINE, *slow, "--save-every", "0.001", "-o", "out")
    wait(killed, lambda: list(folder.glob("out/.hlscore-progress-*.safetensors")))
    kill(killed)
    assert not (folder / "out" / "plan.json").exists()
    assert len(judged(folder)) == 4
    done = hlscore(*MINE, *slow, "-o", folder / "out", "--resume")
    assert done.code == 0, done.err
    assert judged(folder) == []
    same(whole, folder / "out")


def test_a_reward_that_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was judged before is kept, unless saving is off; --force starts anew."""
    monkeypatch.setenv("FAIL_AT", "3")
    for options in (["--save-every", "0"], []):
        outcome = hlscore(*MINE, *options, "-o", folder / "out")
        assert outcome.code == 3
        assert "'mine:judge' raised ValueError: told to" in outcome.message
        assert len(judged(folder)) == 3
        assert (folder / "out").exists() == (not options)
    assert names(folder / "out") == [JOURNAL]
    monkeypatch.delenv("FAIL_AT")
    done = hlscore(*MINE, "-o", folder / "out", "--force", "--seed", "1")
    assert done.code == 0, done.err
    assert len(judged(folder)) == 4
    assert names(folder / "out") == FILES


# Two processes

TOGETHER = MINE[2:]  # behind the model


def test_two_processes_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes on with what it has stored, and the result is that of one process.

    The completions are the very same; of the scores sums are taken in another order.
    """
    monkeypatch.setenv("FAIL_AT", "4")  # the last of both
    stopped = together(folder, *TOGETHER, "-o", "two")
    monkeypatch.delenv("FAIL_AT")
    assert stopped.returncode != 0
    assert "'mine:judge' raised ValueError: told to" in stopped.stderr
    before = [batch[0] for batch in judged(folder)]
    assert len(before) in (3, 4)
    kept = names(folder / "two")
    assert kept == [f".hlscore-progress-rollouts-{rank}-of-2.jsonl" for rank in (0, 1)]
    stored = sum((folder / "two" / name).read_text().count("\n") - 1 for name in kept)

    alone = hlscore("rank", "builtin:tiny", *TINY, *TOGETHER, "-o", folder / "two", "--resume")
    assert alone.code == 2
    assert "no unfinished run" in alone.message or "processes was 2" in alone.message

    done = together(folder, *TOGETHER, "-o", "two", "--resume")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\d+ completions of \d+ prompts", done.stdout)) == 1  # one prints
    assert len(judged(folder)) == (len(PROMPTS) - stored) // 2
    assert hlscore("rank", "builtin:tiny", *TINY, *TOGETHER, "-o", folder / "one").code == 0
    written = [(folder / name / "rollouts.jsonl").read_bytes() for name in ("one", "two")]
    assert written[0] == written[1]
    assert names(folder / "two") == FILES
    assert_alike(folder / "one", folder / "two")
