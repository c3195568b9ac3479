"""Rollouts and pairs that cannot be used: one clear error, the right status, nothing written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from console import chat, save_model
from objective_desk import GROUPS, PAIRS, REWARDS, Desk, Rows, changed, everywhere


@pytest.fixture(scope="module")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture
def desk(tmp_path: Path, good_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(REWARDS)
    yield Desk(tmp_path, good_model)
    assert not list(tmp_path.rglob(".hlscore-*"))


# Rewards


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "Column 'reward' of example 3 in '{path}' is nan, not a number."),
        (1e200, "Column 'reward' of example 3 in '{path}' is 1e+200, too large."),
        ("good", "Column 'reward' of example 3 in '{path}' is str, not a number."),
    ],
    ids=str,
)
def test_reward(desk: Desk, value: object, says: str) -> None:
    message = desk.refuse(*desk.grpo(changed(GROUPS, 3, reward=value)))
    assert says.format(path=desk.folder / "rows.jsonl") in message


def test_no_reward_column(desk: Desk) -> None:
    rows = [{"prompt": "p", "completion": "c", "score": 1.0}] * 4
    message = desk.refuse(*desk.grpo(rows))
    assert "none of the columns that make an example (reward)" in message
    assert "it has: completion, prompt, score" in message
    assert "--column reward=score" in message
    message = desk.refuse(*desk.grpo(rows), "--column", "reward=points")
    assert "has no column 'points'" in message


ROLLOUTS: dict[str, tuple[Rows, str]] = {
    "no reward": (everywhere(GROUPS, reward=None), "None of the 12 completions"),
    "equal": (everywhere(GROUPS, reward=0.5), "all rewards are equal (mean 0.5): no gradient"),
    "alone": (everywhere(GROUPS, completion="x")[::2], "has one completion per prompt"),
    "one group": (GROUPS[:2], "continue one prompt"),
    "one signal": (
        [*GROUPS[:2], *everywhere(GROUPS[2:], reward=1.0)], "Only 1 of 6 groups",
    ),
    "all empty": (everywhere(GROUPS, completion_ids=[]), "Every completion of"),
    "no prompt": (
        [{"completion": "c", "reward": 1.0}] * 4, "has neither 'prompt' nor 'prompt_ids'",
    ),
    "no completion": (
        [{"prompt": "c", "reward": 1.0}] * 4, "has neither 'completion' nor 'completion_ids'",
    ),
    "large ids": (changed(GROUPS, 2, completion_ids=[5, 9999]), "gives id 9999"),
    "negative ids": (
        changed(everywhere(GROUPS, completion_ids=[5]), 2, completion_ids=[-1]),
        "Column 'completion_ids' of example 2",
    ),
    "broken ids": (
        everywhere(GROUPS, completion_ids=[1.5]), "of example 0 in '{path}' is not a list of token",
    ),
    "text for ids": (
        everywhere(GROUPS, completion_ids="[1, 2]"), "is not a list of token ids",
    ),
    "positive logprobs": (
        changed(everywhere(GROUPS, logprobs=[-1.0] * 4), 3, logprobs=[-1.0, 0.5, -1.0, -1.0]),
        "Column 'logprobs' of example 3 in '{path}' is a list with positive numbers",
    ),
    "logprobs that do not fit": (
        changed(everywhere(GROUPS, logprobs=[-1.0] * 4), 3, logprobs=[-1.0]),
        "Example 3 of '{path}' has 1 log-probabilities for 4 tokens",
    ),
    "long prompts": (everywhere(GROUPS, prompt_ids=[7] * 300), "that counts has an advantage"),
    "messages after text": (
        everywhere(GROUPS, completion=[{"role": "assistant", "content": "x"}]),
        "has a completion of messages",
    ),
    "broken messages": (everywhere(GROUPS, prompt=[{"role": "user"}]), "not a list of messages"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROLLOUTS)
def test_rollouts(desk: Desk, name: str) -> None:
    rows, says = ROLLOUTS[name]
    assert says.format(path=desk.folder / "rows.jsonl") in desk.refuse(*desk.grpo(rows))


def test_equal_rewards_say_what_to_do(desk: Desk) -> None:
    message = desk.refuse(*desk.grpo(ROLLOUTS["equal"][0]))
    assert all(words in message for words in ("--generations", "--temperature", "prompts that"))


def test_masking_all_that_is_cut_leaves_nothing(desk: Desk) -> None:
    rows = everywhere(GROUPS, truncated=True)
    assert "--mask-truncated" in desk.refuse(*desk.grpo(rows), "--mask-truncated")


NOTES: dict[str, tuple[Rows, str]] = {
    "cut short": (
        [{**row, "truncated": place % 4 == 0} for place, row in enumerate(GROUPS)],
        "3 completions (25 %) were cut short",
    ),
    "empty": (changed(GROUPS, 3, completion_ids=[]), "1 completions are empty"),
    "sizes": ([*GROUPS[:-1], GROUPS[2]], "Groups differ in size: 1 to 3 completions."),
    "not judged": (changed([*GROUPS, *GROUPS], 3, reward=None), "1 completions could not be"),
    "silent": ([*GROUPS[:10], *everywhere(GROUPS[10:], reward=1.0)],
               "1 of 6 prompts carry no gradient"),
    "long": (changed(everywhere(GROUPS, prompt_ids=[7]), 1, prompt_ids=[7] * 254),
             "1 sequences were cut at 256 tokens."),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTES)
def test_what_is_odd_but_usable_is_noted(desk: Desk, name: str) -> None:
    rows, says = NOTES[name]
    if "prompt_ids" in rows[0]:
        rows = [{**row, "group": place // 2} for place, row in enumerate(rows)]
    done = desk.rank(*desk.grpo(rows))
    assert done.code == 0, done.err
    assert any(says in note for note in done.notes), done.notes


# Pairs


DPO: dict[str, tuple[Rows, str]] = {
    "equal": (everywhere(PAIRS, rejected="x", chosen="x"), "In every pair of"),
    "no chosen": ([{"prompt": "a", "rejected": "b"}] * 4, "it has: prompt, rejected"),
    "null chosen": (changed(PAIRS, 2, chosen=None), "Column 'chosen' of example 2"),
    "messages after text": (
        everywhere(PAIRS, chosen=chat("x"), rejected=chat("y")), "has a prompt of text and",
    ),
    "messages beside text": (
        [{"chosen": chat("q", "x"), "rejected": "y"}] * 4,
        "has a chosen of messages and a rejected of text",
    ),
    "one": (PAIRS[:1], "has a single usable pair"),
    "copies": ([PAIRS[0]] * 6, "has a single usable pair, 6 times"),
    "empty messages": (everywhere(PAIRS, prompt=chat("q"), chosen=[]), "not a list of messages"),
}  # fmt: skip


@pytest.mark.parametrize("name", DPO)
def test_pairs(desk: Desk, name: str) -> None:
    rows, says = DPO[name]
    assert says in desk.refuse(*desk.dpo(rows))


def test_some_equal_pairs_are_left_out(desk: Desk) -> None:
    done = desk.rank(*desk.dpo(changed(PAIRS, 1, chosen="x", rejected="x")))
    assert done.code == 0, done.err
    assert any(note.startswith("note: 1 pairs were left out: their chosen") for note in done.notes)


def test_pairs_cut_where_they_are_equal(desk: Desk) -> None:
    rows = everywhere(PAIRS, prompt="q" * 90)
    assert "--max-length" in desk.refuse(*desk.dpo(rows), "--max-length", "40")
