"""Rollouts in files: the tokens and groups they become, and what is written and read back."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from console import chat, write_rows
from families import FAMILIES
from problems import by_module, close
from sampled import everything
from tokens import CHAT_TEMPLATE_WITH_GENERATION, byte_tokenizer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import DataError
from hlscore.flow import Silent, rank_model
from hlscore.inputs.examples import read_probes
from hlscore.inputs.identity import identify
from hlscore.processes import Processes
from hlscore.rollouts.reading import rollouts_from
from hlscore.rollouts.records import (
    Rollout,
    RolloutGroup,
    RolloutJournal,
    RolloutSet,
    write_rollouts,
)
from hlscore.settings import (
    CaptureSettings,
    DataSettings,
    ModelSettings,
    ObjectiveSettings,
    PlanSettings,
    RankSettings,
)

EOS_ID, USER, ASSISTANT, END = 258, 260, 261, 262
REWARDS = (1.0, 0.0, 0.25)

TEXT = [
    {"prompt": f"q{number}:", "completion": f" a{index}", "reward": reward}
    for number in range(4)
    for index, reward in enumerate(REWARDS)
]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return FAMILIES["llama"].build()


def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer(chat_template=CHAT_TEMPLATE_WITH_GENERATION)


def settings(source: object, *, samples: int = 0, **data: Any) -> RankSettings:
    return RankSettings(
        model=ModelSettings(model="test"),
        data=DataSettings(samples=samples, **data),
        objective=ObjectiveSettings(objective="grpo", rollouts=str(source)),
        capture=CaptureSettings(groups=2, bootstrap=0, batch_size=3),
        plan=PlanSettings(budget="0.5", rank=3),
    )


def read(
    source: object, model: PreTrainedModel, *, samples: int = 0, seed: int = 0, **data: Any
) -> RolloutSet:
    run = settings(source, samples=samples, **data)
    return rollouts_from(read_probes(run), tokenizer(), model, samples=samples, seed=seed)


def from_rows(
    folder: Path, model: PreTrainedModel, rows: Sequence[Mapping[str, Any]]
) -> RolloutSet:
    return read(write_rows(folder / "rollouts.jsonl", rows), model)


def byte_ids(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


# Files


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        return write_rows(path, rows)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_text_is_tokenized_and_ended(tmp_path: Path, model: PreTrainedModel, suffix: str) -> None:
    found = read(_write(tmp_path / f"text.{suffix}", TEXT), model)
    assert [len(group.rollouts) for group in found.groups] == [3, 3, 3, 3]
    for item, row in zip(everything(found), TEXT, strict=True):
        assert (item.prompt, item.completion) == (row["prompt"], row["completion"])
        assert item.prompt_ids == byte_ids(row["prompt"])  # type: ignore[arg-type]
        assert item.completion_ids == (*byte_ids(row["completion"]), EOS_ID)  # type: ignore[arg-type]
        assert item.reward == row["reward"]
        assert not item.truncated
        assert item.log_probs == ()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_ids_are_taken_as_they_are(tmp_path: Path, model: PreTrainedModel, suffix: str) -> None:
    rows = [
        {"prompt_ids": [1, 2], "completion_ids": [3, EOS_ID], "reward": 1.0},
        {"prompt_ids": [1, 2], "completion_ids": [3, 4], "reward": None},
        {"prompt_ids": [1, 2], "completion_ids": [], "reward": -2.5},
    ]
    found = everything(read(_write(tmp_path / f"ids.{suffix}", rows), model))
    assert [item.prompt_ids for item in found] == [(1, 2)] * 3
    assert [item.completion_ids for item in found] == [(3, EOS_ID), (3, 4), ()]
    assert [item.reward for item in found] == [1.0, None, -2.5]
    # What does not end in the end token was cut short.
    assert [item.truncated for item in found] == [False, True, False]
    assert {item.prompt for item in found} == {""}


def test_other_column_names(tmp_path: Path, model: PreTrainedModel) -> None:
    names = {"prompt": "question", "completion": "response", "reward": "score", "group": "uid"}
    rows = [
        {names[key]: value for key, value in row.items()} | {"uid": number // 2}
        for number, row in enumerate(TEXT[:6])
    ]
    found = read(write_rows(tmp_path / "other.jsonl", rows), model, columns=names)
    assert [group.name for group in found.groups] == ["0", "1", "2"]
    assert [item.reward for item in everything(found)] == [*REWARDS, *REWARDS]
    assert everything(found)[0].completion_ids == (*byte_ids(" a0"), EOS_ID)


# Conversations


def test_conversation_continued_by_messages(tmp_path: Path, model: PreTrainedModel) -> None:
    said = [{"role": "assistant", "content": "yes"}]
    rows = [{"prompt": chat("hi"), "completion": said, "reward": reward} for reward in REWARDS]
    for item in everything(from_rows(tmp_path, model, rows)):
        assert item.prompt_ids == (USER, *byte_ids("hi"), END, ASSISTANT)
        assert item.completion_ids == (*byte_ids("yes"), END)
        assert not item.truncated  # its template ended it


def test_messages_end_where_the_model_would_stop(tmp_path: Path) -> None:
    """What a template puts behind the end of a turn is not part of a completion."""
    other = FAMILIES["llama"].build()
    other.generation_config = GenerationConfig(eos_token_id=[EOS_ID, END])
    said = [{"role": "assistant", "content": "yes"}]
    row = {"prompt": chat("hi"), "completion": said}
    rows = [
        row | {"reward": 1.0, "finish_reason": "stop"},
        row | {"reward": 0.0, "finish_reason": "length"},
    ]
    template = CHAT_TEMPLATE_WITH_GENERATION.replace("'<|end|>'", "'<|end|>\\n'")
    tokens = byte_tokenizer(chat_template=template)
    run = settings(write_rows(tmp_path / "rollouts.jsonl", rows))
    stopped, cut = everything(rollouts_from(read_probes(run), tokens, other, samples=0, seed=0))
    assert stopped.completion_ids == (*byte_ids("yes"), END)
    assert not stopped.truncated
    assert cut.completion_ids == byte_ids("yes")  # the end was never sampled
    assert cut.truncated


@pytest.mark.parametrize("prompt", [{"prompt": "text"}, {"prompt_ids": [1, 2]}])
def test_messages_need_a_conversation_before_them(
    tmp_path: Path, model: PreTrainedModel, prompt: dict[str, Any]
) -> None:
    said = [{"role": "assistant", "content": "yes"}]
    with pytest.raises(DataError, match="messages"):
        from_rows(tmp_path, model, [prompt | {"completion": said, "reward": 1.0}])


# Groups


def test_groups_by_prompt_wherever_rows_stand(tmp_path: Path, model: PreTrainedModel) -> None:
    mixed = [TEXT[place] for place in (0, 3, 1, 4, 2, 5)]
    found = from_rows(tmp_path, model, mixed)
    assert [[item.completion for item in group.rollouts] for group in found.groups] == [
        [" a0", " a1", " a2"]
    ] * 2
    assert [group.rollouts[0].prompt for group in found.groups] == ["q0:", "q1:"]


def test_samples_draw_whole_groups(tmp_path: Path, model: PreTrainedModel) -> None:
    rows = [row | {"prompt": f"p{number // 3}"} for number, row in enumerate(TEXT * 5)]
    path = write_rows(tmp_path / "rollouts.jsonl", rows)
    whole = read(path, model)
    assert len(whole.groups) == 20
    drawn = [read(path, model, samples=6, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for found in drawn:
        assert len(found.groups) == 6
        places = [whole.groups.index(group) for group in found.groups]
        assert places == sorted(set(places))
    assert read(path, model, samples=20) == read(path, model, samples=99) == whole


# Ends


@pytest.mark.parametrize(
    ("said", "ended"),
    [
        ({}, True),
        ({"finish_reason": "stop"}, True),
        ({"finish_reason": "length"}, False),
        ({"truncated": False}, True),
        ({"truncated": True}, False),
        ({"truncated": 1}, False),
        ({"truncated": False, "finish_reason": "length"}, True),
        ({"truncated": None, "finish_reason": "length"}, False),
    ],
)
def test_ends_of_text(
    tmp_path: Path, model: PreTrainedModel, said: dict[str, Any], ended: bool
) -> None:
    found = everything(from_rows(tmp_path, model, [TEXT[0] | said]))[0]
    assert found.completion_ids == (*byte_ids(" a0"), *([EOS_ID] if ended else []))
    assert found.truncated == (not ended)


@pytest.mark.parametrize("truncated", ["false", "no", [1]])
def test_truncated_is_yes_or_no(tmp_path: Path, model: PreTrainedModel, truncated: object) -> None:
    with pytest.raises(DataError, match="Column 'truncated' of example 0"):
        from_rows(tmp_path, model, [TEXT[0] | {"truncated": truncated}])


def test_the_end_token_is_not_doubled(tmp_path: Path, model: PreTrainedModel) -> None:
    row = TEXT[0] | {"completion": "a<|eos|>"}
    found = everything(from_rows(tmp_path, model, [row]))[0]
    assert found.completion_ids == (*byte_ids("a"), EOS_ID)


# Log-probabilities


def test_log_probs_fit_the_tokens(tmp_path: Path, model: PreTrainedModel) -> None:
    exact = {"prompt": "p", "completion_ids": [3, 4, EOS_ID], "reward": 1.0}
    text = {"prompt": "p", "completion": "ab", "reward": 0.0}
    rows = [
        exact | {"logprobs": [-0.5, None, 0.0]},
        text | {"logprobs": [-0.25, -1.5, -2.0]},
        text | {"logprobs": [-0.25, -1.5]},
    ]
    found = [item.log_probs for item in everything(from_rows(tmp_path, model, rows))]
    assert (found[0][0], found[0][2]) == (-0.5, 0.0)
    assert math.isnan(found[0][1])
    assert found[1] == (-0.25, -1.5, -2.0)
    assert found[2][:2] == (-0.25, -1.5)
    assert math.isnan(found[2][2])  # of the end token, which the engine left out


@pytest.mark.parametrize(
    ("row", "given"),
    [
        ({"completion_ids": [3, 4, EOS_ID]}, 2),
        ({"completion_ids": [3, 4, EOS_ID]}, 4),
        ({"completion": "ab"}, 1),
        ({"completion": "ab"}, 4),
        ({"completion": "ab"}, 0),
    ],
)
def test_log_probs_that_do_not_fit(
    tmp_path: Path, model: PreTrainedModel, row: dict[str, Any], given: int
) -> None:
    whole = {"prompt": "p", **row, "reward": 1.0, "logprobs": [-1.0] * given}
    with pytest.raises(DataError, match=f"Example 0 .* has {given} log-probabilities for 3 tokens"):
        from_rows(tmp_path, model, [whole])


def test_a_journal_keeps_what_its_groups_took(tmp_path: Path) -> None:
    group = RolloutGroup(
        name="0",
        rollouts=(
            Rollout(prompt="a", prompt_ids=(1,), completion="b", completion_ids=(2,), reward=1.0,
                    truncated=False),
        ),
    )  # fmt: skip
    journal = RolloutJournal(tmp_path, {}, Processes())
    journal.append({0: group, 1: group}, seconds=3.0)
    journal.append({2: group}, seconds=1.5)
    again = RolloutJournal(tmp_path, {}, Processes())
    assert list(again.load()) == [0, 1, 2]
    assert again.seconds == pytest.approx(4.5)


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
    rows = [
        {"prompt_ids": [1], "completion_ids": [2], "reward": reward, "note": "x" * 60_000}
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
