"""`rank --objective grpo` with two processes started by torchrun, stopped and resumed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from console import hlscore
from grpo_runs import FILES, PROMPTS, judged, make_folder, names
from launched import QUICK, assert_alike, together

MINE = (
    "--objective", "grpo", "--generations", "4", "--generate-batch", "8", "--max-new-tokens", "12",
    "--data", "prompts.jsonl", "--reward", "mine:judge",
)  # fmt: skip


def test_two_processes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes on with what it has stored, and the result is that of one process.

    The completions are the very same; of the scores sums are taken in another order.
    """
    folder = make_folder(tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FAIL_AT", "4")  # the last of both
    stopped = together(folder, *MINE, "-o", "two")
    monkeypatch.delenv("FAIL_AT")
    assert stopped.returncode != 0
    assert "'mine:judge' raised ValueError: told to" in stopped.stderr
    before = [batch[0] for batch in judged(folder)]
    assert len(before) in (3, 4)
    kept = names(folder / "two")
    assert kept == [f".hlscore-progress-rollouts-{rank}-of-2.jsonl" for rank in (0, 1)]
    stored = sum((folder / "two" / name).read_text().count("\n") - 1 for name in kept)

    alone = hlscore("rank", "builtin:tiny", *QUICK, *MINE, "-o", folder / "two", "--resume")
    assert alone.code == 2
    assert "no unfinished run" in alone.message or "processes was 2" in alone.message

    done = together(folder, *MINE, "-o", "two", "--resume")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\d+ completions of \d+ prompts", done.stdout)) == 1  # one prints
    assert len(judged(folder)) == (len(PROMPTS) - stored) // 2
    assert hlscore("rank", "builtin:tiny", *QUICK, *MINE, "-o", folder / "one").code == 0
    written = [(folder / name / "rollouts.jsonl").read_bytes() for name in ("one", "two")]
    assert written[0] == written[1]
    assert names(folder / "two") == FILES
    assert_alike(folder / "one", folder / "two")
