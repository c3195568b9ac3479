"""Options and reward functions that cannot be used: one clear error, nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from console import save_model
from objective_desk import GROUPS, PAIRS, PROMPTS, REWARDS, Desk, Rows


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
    options = (*desk.live(reward), "--samples", "0")
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
    outcome = desk.rank(*desk.live(reward), "--samples", "0")
    assert outcome.code == 3
    assert says in outcome.message
    (kept,) = (desk.folder / "out").iterdir()
    assert kept.name == "unscored-rollouts.jsonl"
    assert str(kept) in outcome.message
    assert len(kept.read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt": "x" * 300}] * 3, "each fills the context of 256 tokens"),
        ([{"prompt": ""}] * 3, "all are empty"),
        ([{"question": "x"}] * 3, "--column prompt=question"),
        ([{"prompt": True}] * 3, "is bool, not text"),
        ([{"prompt": []}] * 3, "not a list of messages"),
    ],
)
def test_prompts(desk: Desk, rows: Rows, says: str) -> None:
    assert says in desk.refuse(*desk.live("mine:equal", rows))


# Options


def _objective(name: str) -> Callable[[Desk], tuple[object, ...]]:
    return {
        "sft": lambda _: (),
        "dpo": lambda desk: desk.dpo(PAIRS),
        "rollouts": lambda desk: desk.grpo(GROUPS),
        "live": lambda desk: desk.live("mine:equal"),
    }[name]


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
        ("live", "--reward-weight 1 --reward-weight 2", "2 weights for 1 rewards"),
        ("live", "--reward-weight nan", "--reward-weight is nan"),
        ("live", "--max-length 300", "Use --max-length 256 or less"),
        ("live", "--shard", "--shard spreads the weights"),
        ("live", "--column points=x", "Use one of"),
        ("live", "--resume", "no unfinished run"),
    ],
)
def test_options(desk: Desk, kind: str, options: str, says: str) -> None:
    message = desk.refuse(*_objective(kind)(desk), *options.split(), code=2)
    assert says in message


def test_an_empty_stop_text(desk: Desk) -> None:
    assert "A --stop text is empty" in desk.refuse(*desk.live("mine:equal"), "--stop", "", code=2)


def test_grpo_needs_completions(desk: Desk) -> None:
    message = desk.refuse("--objective", "grpo", "--data", desk.rows(PROMPTS), code=2)
    assert "needs completions with rewards" in message
    assert "--rollouts" in message
    assert "--reward" in message
