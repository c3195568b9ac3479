"""Rollouts that are written and read back, and scores that depend on rewards alone."""

from __future__ import annotations

import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from console import chat, write_rows
from families import FAMILIES
from problems import by_module, close
from test_rollout_files import everything, read, settings, tokenizer
from transformers import PreTrainedModel

from hlscore.flow import Silent, rank_model
from hlscore.inputs.model import identify
from hlscore.rollouts.files import write_rollouts
from hlscore.rollouts.records import Rollout, RolloutGroup, RolloutSet
from hlscore.settings import (
    RankSettings,
)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return FAMILIES["llama"].build()


# There and back


def drawn(*, chats: bool = False, seed: int = 0) -> RolloutSet:
    """Rollouts with hard cases: odd rewards, odd letters, empty completions."""
    draw = random.Random(seed)
    rewards = [0.1 + 0.2, 1 / 3, -0.0, 5e-324, -9.999999999999999e29, None, 1e22, math.pi]
    texts = ["plain", "", "new\nline\r\n", "\u2028 \u0085 \x1c", "\x00", "😀 \ufffd", '"\\', "ж"]
    groups = []
    for name in ("9", "10", "0", "a b"):
        prompt: Any = chat(f"{name}\u2028?") if chats else f"{name}\u2028?\n"
        groups.append(
            RolloutGroup(
                name=name,
                rollouts=tuple(
                    Rollout(
                        prompt=prompt,
                        prompt_ids=(1, 2, len(name)),
                        completion=[{"role": "assistant", "content": text}] if chats else text,
                        completion_ids=tuple(draw.choices(range(262), k=number)),
                        reward=rewards[(number + len(groups)) % 8],
                        truncated=bool(number % 2),
                    )
                    for number, text in enumerate(texts)
                ),
            )
        )
    return RolloutSet(source="drawn", groups=tuple(groups))


def bits(reward: float | None) -> bytes | None:
    return None if reward is None else struct.pack("<d", reward)


@pytest.mark.parametrize("chats", [False, True], ids=["text", "chats"])
def test_what_is_written_is_read_back_exactly(
    tmp_path: Path, model: PreTrainedModel, chats: bool
) -> None:
    before = drawn(chats=chats)
    write_rollouts(before, tmp_path / "rollouts.jsonl")
    after = read(tmp_path / "rollouts.jsonl", model)
    assert after.groups == before.groups
    for one, two in zip(everything(before), everything(after), strict=True):
        assert bits(one.reward) == bits(two.reward)
    lines = (tmp_path / "rollouts.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line)["group"] for line in lines[:-1]] == [
        group.name for group in before.groups for _ in group.rollouts
    ]
    assert lines[-1] == b""


def test_rewards_that_begin_as_whole_numbers(tmp_path: Path, model: PreTrainedModel) -> None:
    """Readers guess the type of a column from the start of a file: here it is wrong."""
    filler = list(range(250)) * 60
    rows = [
        {"prompt_ids": [1], "completion_ids": filler, "reward": reward}
        for reward in [*[1] * 250, *[0.5] * 50]
    ]
    path = write_rows(tmp_path / "long.jsonl", rows)
    assert path.stat().st_size > 2**24
    found = [item.reward for item in everything(read(path, model))]
    assert found == [1.0] * 250 + [0.5] * 50


# Scores


def scores(model: PreTrainedModel, rollouts: RolloutSet, run: RankSettings) -> Any:
    identity = identify(model, "test", None)
    found = rank_model(model, tokenizer(), identity, rollouts, run, Silent())
    assert found is not None
    return found.report


def random_rows(count: int, *, seed: int = 3) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "prompt_ids": [5, number],
            "completion_ids": draw.choices(range(250), k=draw.randint(1, 9)),
            "reward": draw.choice([0.0, 0.3, 1.0]),
        }
        for number in range(count)
        for _ in range(4)
    ]


def test_order_of_rows_changes_nothing(tmp_path: Path, model: PreTrainedModel) -> None:
    rows = random_rows(8)
    path = tmp_path / "rollouts.jsonl"
    one = scores(model, read(write_rows(path, rows), model), settings(path))
    random.Random(1).shuffle(rows)
    two = scores(model, read(write_rows(path, rows), model), settings(path))
    assert one.probes.hash == two.probes.hash
    first, second = by_module(one.rows), by_module(two.rows)
    assert first.keys() == second.keys()
    for name, row in first.items():
        assert row.grad_energy
        assert close(second[name].grad_energy, row.grad_energy, 1e-5)
        assert close(second[name].hls, row.hls, 1e-4, floor=1e-6 * row.grad_energy)


def test_rewards_decide(tmp_path: Path, model: PreTrainedModel) -> None:
    """Another reward gives other scores; the same shift of all rewards does not."""
    rows, path = random_rows(8), tmp_path / "rollouts.jsonl"
    one = scores(model, read(write_rows(path, rows), model), settings(path))
    shifted = [row | {"reward": row["reward"] + 2.0} for row in rows]
    two = scores(model, read(write_rows(path, shifted), model), settings(path))
    other = [row | {"reward": 1.0 - row["reward"] ** 2} for row in rows]
    three = scores(model, read(write_rows(path, other), model), settings(path))
    name, row = next(iter(by_module(one.rows).items()))
    assert close(by_module(two.rows)[name].grad_energy, row.grad_energy, 1e-4)
    assert not close(by_module(three.rows)[name].grad_energy, row.grad_energy, 1e-3)
