"""Data, options and reward functions that cannot be used: one clear error, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from console import QUICK, Outcome, chat, hlscore, save_model, write_rows

Rows = list[dict[str, Any]]

PROMPTS = [{"prompt": f"question {number}:"} for number in range(6)]
GROUPS = [
    {"prompt": f"q{number}:", "completion": f" a{index}", "reward": float(index)}
    for number in range(6)
    for index in range(2)
]
PAIRS = [{"prompt": f"q{n}:", "chosen": f" good {n}", "rejected": f" bad {n}"} for n in range(6)]
REWARDS = """
def raises(**_):
    raise KeyError("level")

def equal(completions, **_):
    return [0.5] * len(completions)

def nothing(completions, **_):
    return [None] * len(completions)
"""


@dataclass
class Desk:
    """A folder of its own, the working directory, and a saved model of 256 tokens."""

    folder: Path
    model: Path

    def rank(self, *options: object) -> Outcome:
        return hlscore("rank", self.model, *QUICK, "--out", self.folder / "out", *options)

    def refuse(self, *options: object, code: int = 3) -> str:
        """Expects a run to end with one error and nothing written."""
        outcome = self.rank(*options)
        assert outcome.code == code, outcome
        assert "Traceback" not in outcome.err
        assert not (self.folder / "out").exists()
        return outcome.message

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> Path:
        return write_rows(self.folder / "rows.jsonl", rows)

    def grpo(self, rows: Sequence[Mapping[str, Any]]) -> tuple[object, ...]:
        """Options that rank rollouts, all of them."""
        return ("--objective", "grpo", "--samples", "0", "--rollouts", self.rows(rows))

    def dpo(self, rows: Sequence[Mapping[str, Any]]) -> tuple[object, ...]:
        return ("--objective", "dpo", "--samples", "0", "--data", self.rows(rows))

    def live(
        self, rows: Sequence[Mapping[str, Any]] = PROMPTS, reward: str = "mine:equal"
    ) -> tuple[object, ...]:
        """Options that sample a few short completions."""
        return (
            "--objective", "grpo", "--reward", reward, "--data", self.rows(rows),
            "--generations", "2", "--max-new-tokens", "4", "--save-every", "0",
        )  # fmt: skip


def changed(rows: Sequence[Mapping[str, Any]], index: int, **values: object) -> Rows:
    """The rows with values of one of them changed."""
    return [{**row, **(values if place == index else {})} for place, row in enumerate(rows)]


def everywhere(rows: Sequence[Mapping[str, Any]], **values: object) -> Rows:
    return [{**row, **values} for row in rows]


@pytest.fixture(scope="module")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture
def desk(tmp_path: Path, good_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(REWARDS)
    yield Desk(tmp_path, good_model)
    assert not list(tmp_path.rglob(".hlscore-*"))


# Reward functions


@pytest.mark.parametrize(
    ("reward", "code", "says"),
    [
        ("mine:raises", 3, "'mine:raises' raised KeyError: 'level'"),
        ("mine:absent", 2, "'mine' has no 'absent'"),
        ("good", 2, "Built-in rewards are math, numeric, exact, regex, json"),
        ("regex:(", 2, "is not a regular expression"),
        ("math", 3, "--reward math needs a column with the right answers"),
    ],
)
def test_reward_functions(desk: Desk, reward: str, code: int, says: str) -> None:
    options = (*desk.live(reward=reward), "--samples", "0")
    assert says in desk.refuse(*options, code=code)


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ("mine:equal", "all rewards are equal (mean 0.5)"),
        ("mine:nothing", "None of the 12 completions"),
    ],
)
def test_completions_without_a_gradient_are_left_to_look_at(
    desk: Desk, reward: str, says: str
) -> None:
    outcome = desk.rank(*desk.live(reward=reward), "--samples", "0")
    assert outcome.code == 3
    assert says in outcome.message
    (kept,) = (desk.folder / "out").iterdir()
    assert kept.name == "unscored-rollouts.jsonl"
    assert str(kept) in outcome.message
    assert len(kept.read_text().splitlines()) == 12


# Options


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("live", "--beta 0.5", "--beta does nothing at the point that is probed"),
        ("rollouts", "--beta 0.5", "--beta does nothing at the point that is probed"),
        ("sft", "--beta 0.5", "--beta is for --objective dpo, not sft"),
        ("sft", "--loss-type dapo", "--objective sft has one loss"),
        ("sft", "--generations 4", "--generations is for --objective grpo, not sft"),
        ("sft", "--reward math", "--reward is for --objective grpo, not sft"),
        ("sft", "--rollouts x.jsonl", "--rollouts is for --objective grpo, not sft"),
        ("dpo", "--temperature 0.5", "--temperature is for --objective grpo, not dpo"),
        ("dpo", "--mask-truncated", "--mask-truncated is for --objective grpo, not dpo"),
        ("dpo", "--loss-type dapo", "--loss-type is 'dapo'"),
        ("dpo", "--beta 0", "--beta is 0."),
        ("dpo", "--beta nan", "--beta is nan."),
        ("rollouts", "--loss-type ipo", "--loss-type is 'ipo'"),
        ("rollouts", "--reward math", "--reward is for completions that are sampled now"),
        ("rollouts", "--reward-weight 2", "--reward-weight is for completions that are sampled"),
        ("rollouts", "--generations 4", "--generations is for completions that are sampled now"),
        ("rollouts", "--stop x", "--stop is for completions that are sampled now"),
        ("rollouts", "--data x.jsonl", "--data and --rollouts are mutually exclusive"),
        ("rollouts", "--epsilon -1", "--epsilon is -1"),
        ("rollouts", "--epsilon nan", "--epsilon is nan"),
        ("rollouts", "--max-length 300", "Use --max-length 256 or less"),
        ("live", "--generations 1", "--generations is 1."),
        ("live", "--generations 5000", "--generations is 5000."),
        ("live", "--temperature 0", "--temperature is 0."),
        ("live", "--temperature nan", "--temperature is nan."),
        ("live", "--top-p 0", "--top-p is 0."),
        ("live", "--top-p 1.5", "--top-p is 1.5."),
        ("live", "--top-k -1", "--top-k is -1."),
        ("live", "--max-new-tokens 0", "--max-new-tokens is 0."),
        ("live", "--generate-batch 0", "--generate-batch is 0."),
        ("live", "--reward-timeout 0", "--reward-timeout is 0."),
        ("live", "--reward-weight 1 --reward-weight 2", "There are 2 weights for 1 reward."),
        ("live", "--reward-weight nan", "--reward-weight is nan"),
        ("live", "--max-length 300", "Use --max-length 256 or less"),
        ("live", "--shard", "--shard spreads the weights"),
        ("live", "--column points=x", "Use one of"),
        ("live", "--resume", "no unfinished run"),
    ],
)
def test_options(desk: Desk, kind: str, options: str, says: str) -> None:
    given = {
        "sft": lambda: (),
        "dpo": lambda: desk.dpo(PAIRS),
        "rollouts": lambda: desk.grpo(GROUPS),
        "live": desk.live,
    }[kind]()
    assert says in desk.refuse(*given, *options.split(), code=2)


def test_grpo_needs_completions(desk: Desk) -> None:
    message = desk.refuse("--objective", "grpo", "--data", desk.rows(PROMPTS), code=2)
    assert all(part in message for part in ("needs completions", "--rollouts", "--reward"))
    assert "A --stop text is empty" in desk.refuse(*desk.live(), "--stop", "", code=2)


# Rows


def test_no_reward_column(desk: Desk) -> None:
    rows = [{"prompt": "p", "completion": "c", "score": 1.0}] * 4
    message = desk.refuse(*desk.grpo(rows))
    assert "none of the columns that make an example (reward)" in message
    assert "it has: completion, prompt, score" in message
    assert "--column reward=score" in message
    message = desk.refuse(*desk.grpo(rows), "--column", "reward=points")
    assert "has no column 'points'" in message


PROMPT_ROWS: dict[str, tuple[Rows, str]] = {
    "long": ([{"prompt": "x" * 300}] * 3, "each fills the context of 256 tokens"),
    "empty": ([{"prompt": ""}] * 3, "all are empty"),
    "no prompt": ([{"question": "x"}] * 3, "--column prompt=question"),
    "no text": ([{"prompt": True}] * 3, "is a boolean, not text"),
    "no messages": ([{"prompt": []}] * 3, "not a list of messages"),
}
ROLLOUTS: dict[str, tuple[Rows, str]] = {
    "nan": (
        changed(GROUPS, 3, reward=float("nan")),
        "Column 'reward' of example 3 in '{path}' is nan, not a number.",
    ),
    "large": (
        changed(GROUPS, 3, reward=1e200),
        "Column 'reward' of example 3 in '{path}' is 1e+200, too large.",
    ),
    "text": (
        changed(GROUPS, 3, reward="good"),
        "Column 'reward' of example 3 in '{path}' is a string, not a number.",
    ),
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


def test_what_to_do_about_rewards_is_said(desk: Desk) -> None:
    message = desk.refuse(*desk.grpo(ROLLOUTS["equal"][0]))
    assert all(words in message for words in ("--generations", "--temperature", "prompts that"))
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


PAIR_ROWS: dict[str, tuple[Rows, str]] = {
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


@pytest.mark.parametrize(
    ("kind", "rows", "says"),
    [
        pytest.param(kind, *case, id=f"{kind}: {name}")
        for kind, cases in (("live", PROMPT_ROWS), ("grpo", ROLLOUTS), ("dpo", PAIR_ROWS))
        for name, case in cases.items()
    ],
)
def test_rows(desk: Desk, kind: str, rows: Rows, says: str) -> None:
    options = {"live": desk.live, "grpo": desk.grpo, "dpo": desk.dpo}[kind](rows)
    assert says.format(path=desk.folder / "rows.jsonl") in desk.refuse(*options)


def test_some_pairs_that_cannot_be_used(desk: Desk) -> None:
    done = desk.rank(*desk.dpo(changed(PAIRS, 1, chosen="x", rejected="x")))
    assert done.code == 0, done.err
    assert any(note.startswith("note: 1 pairs were left out: their chosen") for note in done.notes)
    shutil.rmtree(desk.folder / "out")
    rows = everywhere(PAIRS, prompt="q" * 90)  # cut where they are equal
    assert "--max-length" in desk.refuse(*desk.dpo(rows), "--max-length", "40")
