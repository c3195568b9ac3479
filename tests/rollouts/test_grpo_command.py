"""`rank --objective grpo` on the command line: what it writes; kills, failures, and resuming."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path

import pytest
from console import hlscore, write_rows
from grpo_runs import (
    FILES,
    GRPO,
    JOURNAL,
    MINE,
    PROMPTS,
    QUICK,
    judged,
    kill,
    make_folder,
    names,
    same,
    start,
    table,
    undisturbed,
    wait,
)


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
    assert f"note: {12 - groups} prompts were left out" in shown
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
