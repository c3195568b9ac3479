"""`rank --objective grpo` with two processes started by torchrun, also stopped and resumed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from console import hlscore, write_rows
from grpo_runs import FILES, PROMPTS, judged, make_folder, names
from launched import QUICK, rows, together

SAMPLED = ("--objective", "grpo", "--generations", "4", "--generate-batch", "8")
GRPO = (*SAMPLED, "--reward", "numeric", "--max-new-tokens", "24")
MINE = (*SAMPLED, "--data", "prompts.jsonl", "--reward", "mine:judge", "--max-new-tokens", "12")


def test_two_processes_sample_and_find_what_one_does(tmp_path: Path) -> None:
    """The completions are the very same; of the scores sums are taken in another order."""
    done = together(tmp_path, *GRPO, "--samples", "11", "-o", "two")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\d+ completions of \d+ prompts", done.stdout)) == 1  # one prints
    alone = hlscore(
        "rank", "builtin:tiny", *QUICK, *GRPO, "--samples", "11", "-o", tmp_path / "one"
    )
    assert alone.code == 0, alone.err
    written = [(tmp_path / name / "rollouts.jsonl").read_bytes() for name in ("one", "two")]
    assert written[0] == written[1]
    assert names(tmp_path / "two") == FILES
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, row in two.items():
        energy = one[name].grad_energy or 0.0
        assert energy > 0
        assert row.grad_energy == pytest.approx(energy, rel=1e-5)
        assert row.tail_energy == pytest.approx(one[name].tail_energy, rel=1e-5)
        assert row.hls == pytest.approx(one[name].hls, rel=1e-5, abs=1e-5 * energy)


def test_what_a_single_process_finds_wrong_is_said(tmp_path: Path) -> None:
    """The main process judges the first two prompts and would not tell of the third."""
    rows = [{"prompt": f"{n} + 1 =", "answer": answer} for n, answer in enumerate("ab(")]
    data = write_rows(tmp_path / "data.jsonl", rows)
    options = [option if option != "numeric" else "regex" for option in GRPO]
    done = together(tmp_path, *options, "--data", str(data), "-o", "out")
    assert done.returncode != 0
    assert "The answer '(' is not a regular expression" in done.stderr
    assert "bug in hlscore" not in done.stderr
    assert not (tmp_path / "out" / "plan.json").exists()


def test_two_processes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes on with what it has stored itself, and the completions are those of one."""
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
    assert len(judged(folder)) == (len(PROMPTS) - stored) // 2
    assert hlscore("rank", "builtin:tiny", *QUICK, *MINE, "-o", folder / "one").code == 0
    written = [(folder / name / "rollouts.jsonl").read_bytes() for name in ("one", "two")]
    assert written[0] == written[1]
    assert names(folder / "two") == FILES
    one, two = rows(folder / "one"), rows(folder / "two")
    for name, row in two.items():
        assert row.grad_energy == pytest.approx(one[name].grad_energy, rel=1e-5)
