"""`rank --objective grpo` with two processes started by torchrun."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from console import hlscore, write_rows
from launched import rows, together

GRPO = (
    "--objective", "grpo", "--reward", "numeric", "--generations", "4", "--generate-batch", "8",
    "--max-new-tokens", "24",
)  # fmt: skip


def test_two_processes_sample_and_find_what_one_does(tmp_path: Path) -> None:
    """The completions are the very same; of the scores sums are taken in another order."""
    done = together(tmp_path, *GRPO, "--samples", "11", "-o", "two")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\d+ completions of \d+ prompts", done.stdout)) == 1  # one prints
    quick = ("--bootstrap", "20", "--rank", "4", "--sketch-size", "16", "--samples", "11")
    alone = hlscore("rank", "builtin:tiny", *quick, *GRPO, "-o", tmp_path / "one")
    assert alone.code == 0, alone.err
    written = [(tmp_path / name / "rollouts.jsonl").read_bytes() for name in ("one", "two")]
    assert written[0] == written[1]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "plan.json", "rollouts.jsonl", "scores.parquet",
    ]  # fmt: skip
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
