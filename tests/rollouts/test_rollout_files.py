"""Rollouts in files: the tokens and groups they become, and what is written and read back."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from console import chat, write_rows
from datasets import Dataset
from families import FAMILIES
from problems import by_module, close
from tokens import CHAT_TEMPLATE_WITH_GENERATION, byte_tokenizer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer
from trl_runs import arguments

import hlscore
from hlscore.errors import DataError
from hlscore.flow.rank import rank_model
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
from hlscore.steps import Silent
from hlscore.unfinished import UnfinishedRun

EOS_ID, USER, ASSISTANT, END = 258, 260, 261, 262
REWARDS = (1.0, 0.0, 0.25)
YES = [{"role": "assistant", "content": "yes"}]

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


def everything(found: RolloutSet) -> list[Rollout]:
    return [item for group in found.groups for item in group.rollouts]


def byte_ids(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


# What rows become


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        return write_rows(path, rows)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_text_is_tokenized_and_ids_are_taken_as_they_are(
    tmp_path: Path, model: PreTrainedModel, suffix: str
) -> None:
    found = read(_write(tmp_path / f"text.{suffix}", TEXT), model)
    assert [len(group.rollouts) for group in found.groups] == [3, 3, 3, 3]
    for item, row in zip(everything(found), TEXT, strict=True):
        assert (item.prompt, item.completion) == (row["prompt"], row["completion"])
        assert item.prompt_ids == byte_ids(row["prompt"])  # type: ignore[arg-type]
        assert item.completion_ids == (*byte_ids(row["completion"]), EOS_ID)  # type: ignore[arg-type]
        assert (item.reward, item.truncated, item.log_probs) == (row["reward"], False, ())
    rows = [
        {"prompt_ids": [1, 2], "completion_ids": [3, EOS_ID], "reward": 1.0},
        {"prompt_ids": [1, 2], "completion_ids": [3, 4], "reward": None},
        {"prompt_ids": [1, 2], "completion_ids": [], "reward": -2.5},
    ]
    items = everything(read(_write(tmp_path / f"ids.{suffix}", rows), model))
    assert {(item.prompt, item.prompt_ids) for item in items} == {("", (1, 2))}
    # What does not end in the end token was cut short.
    assert [(item.completion_ids, item.reward, item.truncated) for item in items] == [
        ((3, EOS_ID), 1.0, False), ((3, 4), None, True), ((), -2.5, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "completion", "truncated"),
    [
        ({}, (*b" a0", EOS_ID), False),
        ({"finish_reason": "stop"}, (*b" a0", EOS_ID), False),
        ({"finish_reason": "length"}, (*b" a0",), True),
        ({"truncated": False}, (*b" a0", EOS_ID), False),
        ({"truncated": True}, (*b" a0",), True),
        ({"truncated": 1}, (*b" a0",), True),
        ({"truncated": False, "finish_reason": "length"}, (*b" a0", EOS_ID), False),
        ({"truncated": None, "finish_reason": "length"}, (*b" a0",), True),
        ({"completion": "a<|eos|>"}, (*b"a", EOS_ID), False),  # not doubled
        ({"prompt": chat("hi"), "completion": YES}, (*b"yes", END), False),  # by its template
    ],
    ids=str,
)
def test_ends(
    tmp_path: Path,
    model: PreTrainedModel,
    row: dict[str, Any],
    completion: tuple[int, ...],
    truncated: bool,
) -> None:
    (found,) = everything(from_rows(tmp_path, model, [TEXT[0] | row]))
    assert (found.completion_ids, found.truncated) == (completion, truncated)
    if "prompt" in row:
        assert found.prompt_ids == (USER, *b"hi", END, ASSISTANT)


def test_messages_end_where_the_model_would_stop(tmp_path: Path) -> None:
    """What a template puts behind the end of a turn is not part of a completion."""
    other = FAMILIES["llama"].build()
    other.generation_config = GenerationConfig(eos_token_id=[EOS_ID, END])
    row = {"prompt": chat("hi"), "completion": YES}
    rows = [
        row | {"reward": 1.0, "finish_reason": "stop"},
        row | {"reward": 0.0, "finish_reason": "length"},
        row | {"reward": 0.0, "completion": "yes"},  # as text it ends like a message
    ]
    template = CHAT_TEMPLATE_WITH_GENERATION.replace("'<|end|>'", "'<|end|>\\n'")
    tokens = byte_tokenizer(chat_template=template)
    run = settings(write_rows(tmp_path / "rollouts.jsonl", rows))
    found = everything(rollouts_from(read_probes(run), tokens, other, samples=0, seed=0))
    assert [(item.completion_ids, item.truncated) for item in found] == [
        ((*b"yes", END), False),
        ((*b"yes",), True),  # the end was never sampled
        ((*b"yes", END), False),
    ]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        *(({"truncated": value}, "Column 'truncated' of example 0") for value in ("no", [1])),
        ({"prompt": "text", "completion": YES}, "messages"),
        ({"prompt_ids": [1, 2], "completion": YES}, "messages"),
        *(
            ({"completion_ids": [3, 4, EOS_ID], "logprobs": [-1.0] * count},
             f"Example 0 .* has {count} log-probabilities for 3 tokens")
            for count in (2, 4)
        ),
        *(
            ({"completion": "ab", "logprobs": [-1.0] * count},
             f"Example 0 .* has {count} log-probabilities for 3 tokens")
            for count in (0, 1, 4)
        ),
    ],
)  # fmt: skip
def test_rows_that_are_refused(
    tmp_path: Path, model: PreTrainedModel, row: dict[str, Any], says: str
) -> None:
    whole = {key: value for key, value in TEXT[0].items() if f"{key}_ids" not in row} | row
    with pytest.raises(DataError, match=says):
        from_rows(tmp_path, model, [whole])


def test_log_probs_fit_the_tokens(tmp_path: Path, model: PreTrainedModel) -> None:
    exact = {"prompt": "p", "completion_ids": [3, 4, EOS_ID], "reward": 1.0}
    text = {"prompt": "p", "completion": "ab", "reward": 0.0}
    rows = [
        exact | {"logprobs": [-0.5, None, 0.0]},
        text | {"logprobs": [-0.25, -1.5, -2.0]},
        text | {"logprobs": [-0.25, -1.5]},  # without the end token, which the engine left out
    ]
    found = [item.log_probs for item in everything(from_rows(tmp_path, model, rows))]
    expected = [(-0.5, math.nan, 0.0), (-0.25, -1.5, -2.0), (-0.25, -1.5, math.nan)]
    assert np.array_equal(found, expected, equal_nan=True)


# Groups


def test_groups_by_prompt_or_by_name(tmp_path: Path, model: PreTrainedModel) -> None:
    mixed = [TEXT[place] for place in (0, 3, 1, 4, 2, 5)]
    found = from_rows(tmp_path, model, mixed)
    assert [[item.completion for item in group.rollouts] for group in found.groups] == [
        [" a0", " a1", " a2"]
    ] * 2
    assert [group.rollouts[0].prompt for group in found.groups] == ["q0:", "q1:"]
    names = {"prompt": "question", "completion": "response", "reward": "score", "group": "uid"}
    rows = [
        {names[key]: value for key, value in row.items()} | {"uid": number // 2}
        for number, row in enumerate(TEXT[:6])
    ]
    found = read(write_rows(tmp_path / "other.jsonl", rows), model, columns=names)
    assert [group.name for group in found.groups] == ["0", "1", "2"]
    assert [item.reward for item in everything(found)] == [*REWARDS, *REWARDS]
    assert everything(found)[0].completion_ids == (*b" a0", EOS_ID)


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


def test_a_journal_keeps_what_its_groups_took(tmp_path: Path) -> None:
    rollout = Rollout(prompt_ids=(1,), completion_ids=(2,), reward=1.0)
    group = RolloutGroup(name="0", rollouts=(rollout,))
    journal = RolloutJournal(tmp_path, {}, Processes())
    journal.append({0: group, 1: group}, seconds=3.0)
    journal.append({2: group}, seconds=1.5)
    again = RolloutJournal(tmp_path, {}, Processes())
    assert list(again.load()) == [0, 1, 2]
    assert again.seconds == pytest.approx(4.5)


# There and back


def drawn(*, chats: bool) -> RolloutSet:
    """Rollouts with hard cases: odd rewards, odd letters, empty completions."""
    draw = random.Random(0)
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


@pytest.mark.parametrize("chats", [False, True], ids=["text", "chats"])
def test_what_is_written_is_read_back_exactly(
    tmp_path: Path, model: PreTrainedModel, chats: bool
) -> None:
    before = drawn(chats=chats)
    write_rollouts(before, tmp_path / "rollouts.jsonl")
    after = read(tmp_path / "rollouts.jsonl", model)
    assert after.groups == before.groups
    for one, two in zip(everything(before), everything(after), strict=True):
        assert repr(one.reward) == repr(two.reward)  # also the sign of zero
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


def test_order_of_rows_changes_nothing(tmp_path: Path, model: PreTrainedModel) -> None:
    draw, reports, path = random.Random(3), [], tmp_path / "rollouts.jsonl"
    rows = [
        {
            "prompt_ids": [5, number],
            "completion_ids": draw.choices(range(250), k=draw.randint(1, 9)),
            "reward": draw.choice([0.0, 0.3, 1.0]),
        }
        for number in range(8)
        for _ in range(4)
    ]
    for _ in range(2):
        rollouts, identity = read(write_rows(path, rows), model), identify(model, "test", None)
        found = rank_model(model, tokenizer(), identity, rollouts, settings(path), Silent())
        assert found is not None
        reports.append(found.report)
        random.Random(1).shuffle(rows)
    one, two = reports
    assert one.probes.hash == two.probes.hash
    first, second = by_module(one.rows), by_module(two.rows)
    assert first.keys() == second.keys()
    for name, row in first.items():
        assert row.grad_energy
        assert close(second[name].grad_energy, row.grad_energy, 1e-5)
        assert close(second[name].hls, row.hls, 1e-4, floor=1e-6 * row.grad_energy)


def test_ratios_of_a_resumed_run_are_those_of_all_tokens(
    tmp_path: Path, model: PreTrainedModel
) -> None:
    rows = [
        {"prompt_ids": [5, number], "completion_ids": [7, number, 9], "reward": reward,
         "logprobs": [-5.5, -9.0, -5.5]}
        for number in range(8) for reward in (0.0, 1.0)
    ]  # fmt: skip
    path, identity = write_rows(tmp_path / "rollouts.jsonl", rows), identify(model, "test", None)

    def ratios(display: Silent, *, resume: bool = False) -> str:
        storage = UnfinishedRun(folder=tmp_path / "run", every_seconds=0, resume=resume)
        found = rank_model(
            model, tokenizer(), identity, read(path, model), settings(path), display,
            storage=storage,
        )  # fmt: skip
        assert found is not None
        return next(note for note in found.report.run.notes if "have ratios outside" in note)

    class Stopping(Silent):
        def __init__(self) -> None:
            self.left = 3

        def advance(self, _: int) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    whole = ratios(Silent())
    assert "of the 48 tokens" in whole
    with pytest.raises(KeyboardInterrupt):
        ratios(Stopping())
    assert ratios(Silent(), resume=True) == whole


# Logs of TRL

LOGGED = ("one", "two or three", "x =", "the end of")


def vowels(completions: list[Any], **_: object) -> list[float]:
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(sum(text.count(v) for v in "aeiou") + len(text) % 3) for text in texts]


@pytest.mark.parametrize("chat", [False, True])
def test_a_logged_step_is_probed(tmp_path: Path, chat: bool) -> None:
    tokens = byte_tokenizer(chat_template=CHAT_TEMPLATE_WITH_GENERATION if chat else None)
    prompts = [[{"role": "user", "content": t}] if chat else t for t in LOGGED]
    trainer = GRPOTrainer(
        model=FAMILIES["qwen3"].build().float(),
        reward_funcs=vowels,
        args=GRPOConfig(
            **arguments(tmp_path, per_device_train_batch_size=16), num_generations=4, max_steps=1,
            max_completion_length=6, logging_steps=1, log_completions=True, save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokens,
    )  # fmt: skip
    trainer.train()
    found = hlscore.rank(
        FAMILIES["qwen3"].build(), tokens, objective="grpo", rollouts=tmp_path / "completions",
        columns={"reward": "vowels"}, rank=2,
    )  # fmt: skip
    drawn = found.report.probes.rollouts
    assert drawn is not None
    assert (drawn.prompts, drawn.completions) == (4, 16)
    assert drawn.mean_reward == pytest.approx(trainer.state.log_history[0]["reward"], rel=1e-5)
    assert any(row.grad_energy for row in found.rows)
