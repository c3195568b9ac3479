"""Runs that sample, on the command line: kills, Ctrl-C, failing rewards, and going on."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest
from console import Outcome, hlscore, write_rows
from grpo_runs import (
    FILES,
    JOURNAL,
    MINE,
    PROMPTS,
    judged,
    kill,
    make_folder,
    names,
    same,
    start,
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
    slow = ("--batch-size", "1", "--save-every", "0.001")
    whole = undisturbed(folder, *slow)
    killed = start(folder, *MINE, *slow, "-o", "out")
    wait(killed, lambda: list(folder.glob("out/.hlscore-progress-*.safetensors")))
    kill(killed)
    assert not (folder / "out" / "plan.json").exists()
    assert len(judged(folder)) == 4
    done = hlscore(*MINE, *slow, "-o", folder / "out", "--resume")
    assert done.code == 0, done.err
    assert judged(folder) == []
    same(whole, folder / "out")


def failed(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Outcome:
    monkeypatch.setenv("FAIL_AT", "3")
    outcome = hlscore(*MINE, *options, "-o", folder / "out")
    monkeypatch.delenv("FAIL_AT")
    assert outcome.code == 3
    assert "'mine:judge' raised ValueError: told to" in outcome.message
    assert len(judged(folder)) == 3
    return outcome


def test_a_reward_that_fails_loses_nothing(
    folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed(folder, monkeypatch)
    assert names(folder / "out") == [JOURNAL]
    done = hlscore(*MINE, "-o", folder / "out", "--resume")
    assert done.code == 0, done.err
    assert len(judged(folder)) == 2
    same(whole, folder / "out")


def test_force_starts_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed(folder, monkeypatch)
    done = hlscore(*MINE, "-o", folder / "out", "--force", "--seed", "1")
    assert done.code == 0, done.err
    assert len(judged(folder)) == 4
    assert names(folder / "out") == FILES
    before = (folder / "out" / "rollouts.jsonl").read_bytes()
    again = hlscore(*MINE, "-o", folder / "out", "--force")
    assert again.code == 0, again.err
    assert (folder / "out" / "rollouts.jsonl").read_bytes() != before


def test_saving_off_stores_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed(folder, monkeypatch, "--save-every", "0")
    assert not (folder / "out").exists()
    done = hlscore(*MINE, "--save-every", "0", "-o", folder / "out")
    assert done.code == 0, done.err
    assert names(folder / "out") == FILES


def test_there_must_be_something_to_resume(folder: Path) -> None:
    found = hlscore(*MINE, "-o", folder / "out", "--resume")
    assert found.code == 2
    assert "no unfinished run" in found.message
    assert judged(folder) == []
    assert not (folder / "out").exists()
