"""Preference pairs: TRL's tokens and masks, built-in pairs, and halves that part no pair."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from console import chat
from tokens import CHAT_TEMPLATE_WITHOUT_GENERATION, byte_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl_runs import build, captured, dpo_trainer

from hlscore.inputs.examples import BUILTIN_KNOWN, builtin_pairs, builtin_rows
from hlscore.inputs.formats import example_set
from hlscore.inputs.model import load_model
from hlscore.probes.encode import encode
from hlscore.probes.units import ProbeSet
from hlscore.rollouts.records import Rollout, RolloutGroup, RolloutSet
from hlscore.rollouts.verifiers import exact_reward, numeric_reward
from hlscore.settings import DataSettings, ModelSettings, ObjectiveSettings

Rows = list[dict[str, Any]]
# A turn opened for the model holds more than a finished one, as with models that think.
THINKING = CHAT_TEMPLATE_WITHOUT_GENERATION.replace(
    "{{- '<|assistant|>' -}}", "{{- '<|assistant|><think>' -}}"
)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


TEXT = [
    {"prompt": "2 + 3 =", "chosen": " 5", "rejected": " 6 or seven"},
    {"prompt": "name a colour: ", "chosen": "blue, or green", "rejected": "table"},
    {"prompt": "There are", "chosen": "n't any.<|eos|>", "rejected": ""},
    {"prompt": "ends in a space ", "chosen": " x", "rejected": "\n\ny"},
]
CHATS = [
    {
        "prompt": chat(row["prompt"], "well", "go on")[: 1 + 2 * (place % 2)],
        "chosen": said(row["chosen"]),
        "rejected": said(row["rejected"] or "?"),
    }
    for place, row in enumerate(TEXT)
]
FORMATS: dict[str, Rows] = {
    "text": TEXT,
    "text without prompt": [
        {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
        for row in TEXT
    ],
    "text that begins alike": [
        {"chosen": "the answer is 12 ", "rejected": "the answer is 13"},
        {"chosen": "one two", "rejected": "one  two"},
        {"chosen": "abc", "rejected": "xyz"},
        {"chosen": "same", "rejected": "same and more"},
    ],
    "chats": CHATS,
    "chats without prompt": [
        {key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in CHATS
    ],
    "chats of which one goes on": [
        {"chosen": chat(f"q{n}", "a"), "rejected": chat(f"q{n}", "a", "more", "b")}
        for n in range(4)
    ],
    "several turns": [
        row | {"chosen": [*row["chosen"], *chat("and?"), *said("so")]} for row in CHATS
    ],
}


def whole(rows: Sequence[Any]) -> Any:
    return example_set(rows, "rows", DataSettings(), ("preference",))


def pairs_of(
    rows: Sequence[Any], tokens: PreTrainedTokenizerBase, model: PreTrainedModel, **options: Any
) -> ProbeSet:
    chosen = {"max_length": None, "groups": 2, "seed": 0} | options
    return encode(
        whole(rows), tokens, model, objective=ObjectiveSettings(objective="dpo"), **chosen
    )


def found(probes: ProbeSet) -> Counter[Any]:
    """Tokens, mask and side of every sequence: the chosen ones are made more probable."""
    return Counter(
        (item.input_ids, item.counted, item.coefficient > 0) for item in probes.sequences
    )


@pytest.mark.parametrize(
    ("tokenizer", "shape"),
    [
        *(("bytes", shape) for shape in FORMATS),
        ("beginning", "text"), ("beginning", "chats"), ("thinking", "chats"),
        ("thinking", "chats without prompt"), ("thinking", "several turns"),
        ("merges", "text"), ("merges", "text without prompt"), ("merges", "text that begins alike"),
    ],
)  # fmt: skip
def test_tokens_and_masks_are_those_of_trl(tmp_path: Path, shape: str, tokenizer: str) -> None:
    tokens = {
        "bytes": lambda: byte_tokenizer(chat_template=CHAT_TEMPLATE_WITHOUT_GENERATION),
        "beginning": lambda: byte_tokenizer(
            chat_template=CHAT_TEMPLATE_WITHOUT_GENERATION, add_bos=True
        ),
        "thinking": lambda: byte_tokenizer(chat_template=THINKING),
        "merges": lambda: load_model(ModelSettings(model="builtin:tiny")).tokenizer,
    }[tokenizer]()
    trainer = dpo_trainer(tmp_path, FORMATS[shape], tokens)
    expected: Counter[Any] = Counter()
    for row in trainer.train_dataset:
        for key, side in (("chosen_ids", True), ("rejected_ids", False)):
            start = len(row["prompt_ids"])
            ids = (*row["prompt_ids"], *row[key])
            # Nothing predicts the first token of all.
            counted = tuple(place >= max(start, 1) for place in range(len(ids)))
            expected[ids, counted, side] += 1
    model = load_model(ModelSettings(model="builtin:tiny")).model  # 768 embeddings
    assert sum(expected.values()) == 8
    assert found(pairs_of(FORMATS[shape], tokens, model)) == expected


@pytest.mark.parametrize("length", [11, 14, 21])
def test_pairs_are_cut_as_in_trl(tmp_path: Path, length: int) -> None:
    tokens, model = byte_tokenizer(), build()
    trainer = dpo_trainer(tmp_path, TEXT, tokens, max_length=length)
    batch = trainer.data_collator(list(trainer.train_dataset))
    expected: Counter[Any] = Counter()
    count = len(trainer.train_dataset)
    for place in range(count):
        sides = []
        for row, side in ((place, True), (count + place, False)):
            size = int(batch["attention_mask"][row].sum())
            ids = tuple(batch["input_ids"][row, :size].tolist())
            counted = tuple(batch["completion_mask"][row, :size].bool().tolist())
            sides.append((ids, counted, side))
        if sides[0][0] != sides[1][0]:  # equal ones have no gradient
            expected.update(side for side in sides if any(side[1]))
    probes = pairs_of(TEXT, tokens, model, max_length=length)
    assert found(probes) == expected
    assert probes.summary.truncated > 0


# Built-in pairs


def test_builtin_pairs_differ_in_the_answer() -> None:
    rows, pairs = builtin_rows(BUILTIN_KNOWN), builtin_pairs(BUILTIN_KNOWN)
    assert len(pairs) == len(rows) >= 256
    for row, pair in zip(rows, pairs, strict=True):
        assert (pair["prompt"], pair["chosen"]) == (row["prompt"], row["completion"])
        worked = row["completion"].removesuffix(row["answer"])
        assert worked != row["completion"]
        assert pair["rejected"].startswith(worked)
        wrong = pair["rejected"].removeprefix(worked)
        assert wrong.strip()
        assert wrong in {other["answer"] for other in rows if other["kind"] == row["kind"]}
        assert exact_reward(pair["chosen"], row["completion"]) == 1.0
        assert exact_reward(pair["rejected"], row["completion"]) == 0.0
        assert numeric_reward(pair["rejected"], row["answer"]) in (0.0, None)


# Halves


def letters(count: int) -> Rows:
    draw = random.Random(0)

    def word() -> str:
        return "".join(draw.choices("abcdefgh ", k=draw.randint(2, 9)))

    return [
        {"prompt": f"{number}: ", "chosen": f"{word()}.", "rejected": f"{word()}!"}
        for number in range(count)
    ]


def places(probes: ProbeSet) -> dict[tuple[int, ...], list[tuple[int, int]]]:
    """The half and the group of each sequence."""
    where: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for half, groups in enumerate(probes.halves):
        for number, group in enumerate(groups):
            for item in group:
                where.setdefault(item.input_ids, []).append((half, number))
    return where


@pytest.mark.parametrize("groups", [1, 3, 8])
def test_no_pair_is_parted(groups: int) -> None:
    rows = letters(20)
    copies = [*rows, rows[3], rows[3], rows[11]]
    tokens, model = byte_tokenizer(), build()
    probes = pairs_of(copies, tokens, model, groups=groups)
    where = places(probes)
    expected = [[0] * len(half) for half in probes.halves]
    for place, row in enumerate(rows):
        ends = [
            where[(*(row["prompt"] + row[key]).encode(), 258)] for key in ("chosen", "rejected")
        ]
        assert ends[0] == ends[1]
        assert len(ends[0]) == {3: 3, 11: 2}.get(place, 1)
        assert len(set(ends[0])) == 1  # copies stay together
        half, group = ends[0][0]
        expected[half][group] += len(ends[0])
    assert [list(half) for half in probes.counts] == expected
    assert sum(map(sum, probes.counts)) == 23
    shuffled = random.Random(1).sample(copies, len(copies))
    assert pairs_of(shuffled, tokens, model, groups=groups).counts == probes.counts


def rollouts(count: int, *, silent: int = 0, seed: int = 0) -> RolloutSet:
    """Groups of four; the last ones have equal rewards."""
    draw = random.Random(seed)

    def group(number: int) -> RolloutGroup:
        rewards = [1.0] * 4 if number >= count else [0.0, 1.0, draw.random(), draw.random()]
        rollouts = tuple(
            Rollout(
                prompt_ids=(200, number),
                completion_ids=tuple(draw.choices(range(250), k=draw.randint(1, 9))),
                reward=reward,
            )
            for reward in rewards
        )
        return RolloutGroup(name=str(number), rollouts=rollouts)

    return RolloutSet(source="drawn", groups=tuple(map(group, range(count + silent))))


def policy(loss_type: str) -> ObjectiveSettings:
    return ObjectiveSettings(
        objective="grpo", loss_type=loss_type, rollouts="drawn", max_new_tokens=10
    )


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "gspo"])
def test_no_prompt_is_in_both_halves(loss_type: str) -> None:
    drawn = rollouts(13)
    # One group again under another name, and another group of every fourth prompt.
    again = replace(drawn.groups[5], name="5 again")
    more = [replace(group, name=f"{group.name} more") for group in rollouts(13, seed=1).groups[::4]]
    twice = RolloutSet(source="drawn", groups=(*drawn.groups, again, *more))
    model = build()
    probes = encode(
        twice, byte_tokenizer(), model, objective=policy(loss_type), max_length=None, groups=3,
        seed=0,
    )  # fmt: skip
    where: dict[int, set[tuple[int, int]]] = {}
    for ids, found_at in places(probes).items():
        where.setdefault(ids[1], set()).update(found_at)
    assert set(where) == set(range(13))
    expected = [[0] * len(half) for half in probes.halves]
    for group in twice.groups:
        # One place for all completions, copies too.
        ((half, number),) = where[int(group.name.split()[0])]
        tokens = sum(len(item.completion_ids) for item in group.rollouts)
        # What a group adds to the divisor, from the definition of the loss.
        divisor = {"dapo": tokens, "grpo": 4, "gspo": 4, "dr_grpo": 40}[loss_type]
        expected[half][number] += divisor
    assert [list(half) for half in probes.counts] == expected


# The mean


def log_prob(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Any:
    ids = torch.tensor([[*prompt, *completion]])
    logs = model(input_ids=ids).logits[0].log_softmax(-1)
    start = len(prompt)
    return sum(logs[start + place - 1, token] for place, token in enumerate(completion))


def assert_mean(loss: torch.Tensor, model: PreTrainedModel, examples: Any, how: Any) -> None:
    """The gradient of a plain loss is the mean of both halves, each by its count."""
    loss.backward()
    for name, gradient in captured(build(), examples, how, byte_tokenizer()).items():
        expected = model.get_parameter(name).grad
        assert expected is not None
        assert float(expected.norm()) > 0
        error = float((gradient - expected.reshape(gradient.shape)).norm() / expected.norm())
        assert error < 1e-5, name


def test_pairs_have_the_mean_of_all() -> None:
    model, rows = build().eval(), letters(7)
    total = torch.tensor(0.0)
    for row in rows:
        chosen, rejected = (
            log_prob(model, row["prompt"].encode(), [*row[key].encode(), 258])
            for key in ("chosen", "rejected")
        )
        margin = (chosen - chosen.detach()) - (rejected - rejected.detach())
        total = total - torch.nn.functional.logsigmoid(0.25 * margin)
    how = ObjectiveSettings(objective="dpo", beta=0.25)
    assert_mean(total / 7, model, whole(rows), how)


def test_rollouts_have_the_mean_of_all() -> None:
    model = build().eval()
    drawn = rollouts(5, silent=2)
    total, tokens = torch.tensor(0.0), 0
    for group in drawn.groups:
        rewards = torch.tensor([float(item.reward or 0.0) for item in group.rollouts])
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        for item, advantage in zip(group.rollouts, advantages, strict=True):
            total = total - advantage * log_prob(model, item.prompt_ids, item.completion_ids)
            tokens += len(item.completion_ids)
    assert_mean(total / tokens, model, drawn, policy("dapo"))
