"""`rank --objective grpo` on the command line: what it writes, and what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from console import hlscore
from grpo_runs import (
    FILES,
    GRPO,
    MINE,
    QUICK,
    judged,
    make_folder,
    names,
    start,
    table,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_folder(tmp_path)


def test_math_rewards_give_all_files(tmp_path: Path) -> None:
    first = start(
        tmp_path, *GRPO, "--reward", "math", "--samples", "12", *QUICK, "--max-new-tokens", "40",
        "-o", "out",
    )  # fmt: skip
    shown, said = first.communicate(timeout=120)
    assert (first.returncode, said) == (0, "")
    assert names(tmp_path / "out") == FILES
    lines = [json.loads(x) for x in (tmp_path / "out/rollouts.jsonl").read_text().splitlines()]
    groups = len({line["group"] for line in lines})
    assert 6 < groups < 12  # answers in words are nothing for `math`, and not sampled for
    assert f"note: {12 - groups} prompts were left out" in shown
    assert len(lines) == 4 * groups
    known = [line["reward"] for line in lines if line["reward"] is not None]
    assert {*known} == {0.0, 1.0}
    drawn = f"{4 * groups} completions of {groups} prompts from builtin:known"
    assert f"{drawn}, mean reward {mean(known)}" in shown
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


def mean(rewards: Sequence[float]) -> str:
    return f"{sum(rewards) / len(rewards):.3g}"


@pytest.mark.parametrize("name", FILES)
def test_results_are_not_overwritten(folder: Path, name: str) -> None:
    kept = folder / "out" / name
    kept.parent.mkdir()
    kept.write_text("mine")
    found = hlscore(*MINE, "-o", folder / "out")
    assert found.code == 2
    assert name in found.message
    assert "--force" in found.message
    assert kept.read_text() == "mine"
    assert names(folder / "out") == [name]
    assert judged(folder) == []


def test_a_forecast_samples_nothing(folder: Path) -> None:
    done = hlscore(*MINE, "-o", folder / "out", "--dry-run")
    assert done.code == 0, done.err
    tokens = done.out.replace(",", "")
    assert str(8 * 4 * 12) in tokens  # as if every completion were as long as it may become
    assert judged(folder) == []
    assert not (folder / "out").exists()


def test_json_names_all_files(folder: Path) -> None:
    done = hlscore(*MINE, "-o", folder / "out", "--json")
    assert done.code == 0, done.err
    text = json.dumps(json.loads(done.out))
    assert all(name in text for name in FILES)
