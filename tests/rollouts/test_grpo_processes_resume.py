"""Two processes that sample together, are stopped, and go on together."""

from __future__ import annotations

from pathlib import Path

import pytest
from console import hlscore
from grpo_runs import FILES, PROMPTS, judged, make_folder
from launched import rows, together

OPTIONS = (
    "--objective", "grpo", "--generations", "4", "--generate-batch", "8", "--max-new-tokens", "12",
    "--data", "prompts.jsonl", "--reward", "mine:judge",
)  # fmt: skip
QUICK = ("--samples", "64", "--bootstrap", "20", "--rank", "4", "--sketch-size", "16")


def test_two_processes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes on with what it has stored itself, and the completions are those of one."""
    folder = make_folder(tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FAIL_AT", "4")  # the last of both
    stopped = together(folder, *OPTIONS, "-o", "two")
    monkeypatch.delenv("FAIL_AT")
    assert stopped.returncode != 0
    assert "'mine:judge' raised ValueError: told to" in stopped.stderr
    before = [batch[0] for batch in judged(folder)]
    assert len(before) in (3, 4)
    kept = sorted(path.name for path in (folder / "two").iterdir())
    assert kept == [f".hlscore-progress-rollouts-{rank}-of-2.jsonl" for rank in (0, 1)]
    stored = sum((folder / "two" / name).read_text().count("\n") - 1 for name in kept)

    alone = hlscore("rank", "builtin:tiny", *QUICK, *OPTIONS, "-o", folder / "two", "--resume")
    assert alone.code == 2
    assert "no unfinished run" in alone.message or "processes was 2" in alone.message

    done = together(folder, *OPTIONS, "-o", "two", "--resume")
    assert done.returncode == 0, done.stderr
    assert len(judged(folder)) == (len(PROMPTS) - stored) // 2
    assert hlscore("rank", "builtin:tiny", *QUICK, *OPTIONS, "-o", folder / "one").code == 0
    written = [(folder / name / "rollouts.jsonl").read_bytes() for name in ("one", "two")]
    assert written[0] == written[1]
    assert sorted(path.name for path in (folder / "two").iterdir()) == FILES
    one, two = rows(folder / "one"), rows(folder / "two")
    for name, row in two.items():
        assert row.grad_energy == pytest.approx(one[name].grad_energy, rel=1e-5)
