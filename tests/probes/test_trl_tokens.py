"""Tokens, loss masks and losses of supervised data, against TRL's own trainer on the same file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from console import chat, save_model, write_rows
from console import hlscore as run
from datasets import load_dataset
from tokens import (
    CHAT_TEMPLATE_WITH_GENERATION,
    CHAT_TEMPLATE_WITHOUT_GENERATION,
    EOS,
    VOCAB_SIZE,
    byte_tokenizer,
)
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import SFTConfig, SFTTrainer
from trl_runs import arguments

import hlscore
from hlscore.artifacts.plan_file import read_plan
from hlscore.artifacts.report import read_report
from hlscore.errors import DataError, HlscoreError, UsageError
from hlscore.inputs.examples import read_examples
from hlscore.inputs.formats import example_set
from hlscore.inputs.hub import find_model
from hlscore.probes.encode import encode
from hlscore.records import ProbeSummary
from hlscore.settings import DataSettings, ModelSettings, ObjectiveSettings
from hlscore.validation.run import other_mask

Rows = list[dict[str, Any]]
Places = list[tuple[tuple[int, ...], tuple[int, ...]]]

CITIES = ("Rome", "Oslo", "Lima", "Cairo")
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "weather", "description": "of a city", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": WEATHER}]


def asked(city: str) -> list[dict[str, Any]]:
    return chat(f"Weather in {city}?")


def answered(city: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": f"Sunny in {city}."}]


def talk(city: str) -> list[dict[str, Any]]:
    return [*asked(city), *answered(city), *chat("Sure?", f"Yes, {city}.")]


def called(city: str) -> list[dict[str, Any]]:
    """A conversation in which the assistant calls a tool and says nothing."""
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
    return [
        *asked(city),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "name": "weather", "content": "sunny"},
        *answered(city),
    ]


def marked() -> PreTrainedTokenizerBase:
    return byte_tokenizer(chat_template=CHAT_TEMPLATE_WITH_GENERATION)


def qwen() -> PreTrainedTokenizerBase:
    """A template with tools, thinking and arguments of its own, and without marks."""
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    return byte_tokenizer(chat_template=template.read_text())


def merging() -> PreTrainedTokenizerBase:
    """A tokenizer whose tokens are several letters long."""
    files = find_model(ModelSettings(model="builtin:tiny"), weights=False)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(files.directory)
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class Shape:
    rows: Rows
    loss_on: str = "all"
    tokenizer: Callable[[], PreTrainedTokenizerBase] = marked
    assistant_only: bool = False
    max_length: int = 1024
    trl_rows: Rows | None = None  # what TRL reads, where it does not know the columns


def sharegpt(user: str, assistant: str) -> Rows:
    names = {"user": user, "assistant": assistant}
    return [
        {"conversations": [{"from": names[t["role"]], "value": t["content"]} for t in talk(city)]}
        for city in CITIES
    ]


TALKS = [{"messages": talk(city)} for city in CITIES]
PAIRS = [{"prompt": f"Weather in {city}?", "completion": f" Sunny in {city}."} for city in CITIES]
CHAT_PAIRS = [{"prompt": asked(city), "completion": answered(city)} for city in CITIES]
SYSTEM = "You answer in one short sentence and never ask back."
SHARED = [{"messages": [{"role": "system", "content": SYSTEM}, *talk(city)[:2]]} for city in CITIES]

SHAPES = {
    "text": Shape(rows=[{"text": f"Sunny in {city}.{EOS * (city == 'Cairo')}"} for city in CITIES]),
    "prompt and completion": Shape(rows=PAIRS, loss_on="completion"),
    "a prompt that merges with the completion": Shape(
        rows=[{"prompt": f"{a} + ", "completion": f"{b} = {a + b}"} for a, b in ((2, 3), (4, 5))]
        + [{"prompt": "the su", "completion": "m of all"}, {"prompt": " 1", "completion": "2 is"}],
        loss_on="completion", tokenizer=merging,
    ),
    "conversations": Shape(rows=TALKS),
    "conversations, the assistant alone": Shape(
        rows=TALKS, loss_on="assistant", assistant_only=True
    ),
    "the assistant alone, by TRL's template": Shape(
        rows=TALKS, loss_on="assistant", tokenizer=qwen, assistant_only=True
    ),
    "conversational prompt and completion": Shape(rows=CHAT_PAIRS, loss_on="completion"),
    "conversational completion, the assistant alone": Shape(
        rows=[{"prompt": talk(city)[:1], "completion": talk(city)[1:]} for city in CITIES],
        loss_on="assistant", assistant_only=True,
    ),
    "tools": Shape(
        rows=[{"messages": talk(city), "tools": TOOLS} for city in CITIES], tokenizer=qwen
    ),
    "tool calls without content, tools as JSON": Shape(
        rows=[{"messages": called(city), "tools": json.dumps(TOOLS)} for city in CITIES],
        tokenizer=qwen,
    ),
    "tools of a completion": Shape(
        rows=[row | {"tools": TOOLS} for row in CHAT_PAIRS], loss_on="completion", tokenizer=qwen
    ),
    "arguments that differ by row": Shape(
        rows=[
            row | {"chat_template_kwargs": {"enable_thinking": place % 2 == 0}}
            for place, row in enumerate(CHAT_PAIRS)
        ],
        loss_on="completion", tokenizer=qwen,
    ),
    "prompt and completion beside messages": Shape(
        rows=[row | {"messages": talk(city)} for row, city in zip(CHAT_PAIRS, CITIES, strict=True)],
        loss_on="completion",
    ),
    "messages beside text": Shape(rows=[{"messages": talk(c), "text": c} for c in CITIES]),
    "ShareGPT with TRL's roles": Shape(rows=sharegpt("user", "assistant")),
    "ShareGPT": Shape(rows=sharegpt("human", "gpt"), trl_rows=TALKS),
    "Alpaca": Shape(
        rows=[
            {"instruction": "Weather in", "input": f"{city}?", "output": f"Sunny in {city}."}
            for city in CITIES
        ],
        loss_on="completion",
        trl_rows=[
            {"prompt": chat(f"Weather in\n{city}?"), "completion": answered(city)}
            for city in CITIES
        ],
    ),
    "longer than the limit": Shape(
        rows=[{"prompt": "x" * n, "completion": "yes, yes"} for n in (4, 9, 17, 40)],
        loss_on="completion", max_length=20,
    ),
}  # fmt: skip


def build(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=max(VOCAB_SIZE, len(tokenizer)), hidden_size=16, intermediate_size=24,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=2048,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def by_trl(shape: Shape, folder: Path) -> tuple[Places, float]:
    """Ids, places of the loss and mean loss of TRL's trainer, from its own batch."""
    data = write_rows(folder / "trl.jsonl", shape.trl_rows or shape.rows)
    tokenizer = shape.tokenizer()
    trainer = SFTTrainer(
        model=build(tokenizer),
        args=SFTConfig(
            **arguments(folder / "out", per_device_train_batch_size=8),
            max_length=shape.max_length, assistant_only_loss=shape.assistant_only,
        ),
        train_dataset=load_dataset(
            "json", data_files=str(data), split="train", cache_dir=str(folder / "cache")
        ),
        processing_class=tokenizer,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    places = []
    for ids, mask, labels in zip(
        batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["labels"].tolist(),
        strict=True,
    ):  # fmt: skip
        length = sum(mask)
        counted = tuple(i for i in range(1, length) if labels[i] != -100)
        places.append((tuple(ids[:length]), counted))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), trainer._prepare_inputs(batch))
    return sorted(places), float(loss)


@pytest.mark.parametrize("name", list(SHAPES))
def test_tokens_masks_and_losses(tmp_path: Path, name: str) -> None:
    shape = SHAPES[name]
    if shape.tokenizer is merging:  # what that shape stands on: a prompt that is no prefix
        ids = [merging()([row["prompt"], row["prompt"] + row["completion"]]) for row in shape.rows]
        assert any(two[: len(one)] != one for one, two in (item["input_ids"] for item in ids))
    expected, loss = by_trl(shape, tmp_path)
    data, tokenizer = write_rows(tmp_path / "rows.jsonl", shape.rows), shape.tokenizer()
    model, objective = build(tokenizer), ObjectiveSettings(assistant_only_loss=shape.assistant_only)
    probes = encode(
        read_examples(DataSettings(data=str(data), samples=0), seed=0), tokenizer, model,
        objective=objective, max_length=shape.max_length, groups=2, seed=0,
    )  # fmt: skip
    assert expected == sorted(
        (item.input_ids, tuple(place for place, yes in enumerate(item.counted) if yes))
        for item in probes.sequences
    )
    summary = hlscore.rank(
        model, tokenizer, data=data, samples=0, assistant_only_loss=shape.assistant_only,
        max_length=shape.max_length, rank=2, budget=0.2,
    ).report.probes  # fmt: skip
    assert (summary.hash, summary.loss_on) == (probes.summary.hash, shape.loss_on)
    assert summary.mean_loss == pytest.approx(loss, rel=1e-5)


def encoded(rows: Rows, tokenizer: PreTrainedTokenizerBase, *, only: bool = False) -> ProbeSummary:
    return encode(
        example_set(rows, "rows", DataSettings()), tokenizer, build(tokenizer),
        objective=ObjectiveSettings(assistant_only_loss=only), max_length=None, groups=2, seed=0,
    ).summary  # fmt: skip


def test_a_shared_prefix_is_said_with_its_share() -> None:
    """Of 4 conversations all begin alike: 1 token of the role, the system prompt, and so on."""
    (note,) = encoded(SHARED, marked()).notes
    alike = len(f"|{SYSTEM}||Weather in ") - 1  # the first token of all is not counted
    counted = sum(len(f"|{SYSTEM}||Weather in {c}?||Sunny in {c}.|") - 1 for c in CITIES)
    assert note.startswith(f"{100 * 4 * alike / counted:.0f} % of the counted tokens")
    assert "--assistant-only-loss" in note
    assert "prefix" not in "".join(encoded(SHARED, marked(), only=True).notes)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (SHAPES["ShareGPT"].rows, "gpt, human were read as assistant, user"),
        (SHAPES["Alpaca"].rows, "as LLaMA-Factory does"),
        (SHAPES["prompt and completion beside messages"].rows, "not messages"),
        ([{"prompt": 1, "completion": n} for n in (2, 3)], "such as '1'"),
        ([{"messages": talk(c), "prompt": c} for c in CITIES], "column prompt beside messages"),
        ([{"messages": talk(c), "images": [c]} for c in CITIES], "Images are not read"),
    ],
)
def test_how_columns_were_read_is_said(rows: Rows, words: str) -> None:
    assert any(words in note for note in encoded(rows, marked()).notes)


def test_numbers_are_texts(tmp_path: Path) -> None:
    """A mapped column of answers may hold integers; TRL gets the same as text."""
    asked = [{"q": f"{n} + {n} = ", "Answer": 2 * n} for n in range(4)]
    data = write_rows(tmp_path / "data.jsonl", asked)
    columns = {"prompt": "q", "completion": "Answer"}
    found = read_examples(DataSettings(data=str(data), columns=columns), seed=0)
    assert [dict(row) for row in found.rows] == [
        {"prompt": row["q"], "completion": str(row["Answer"])} for row in asked
    ]
    assert "column 'Answer' were read as text, such as '0'" in found.notes[0]


def test_calls_of_sharegpt() -> None:
    """A turn that calls a function, and what it returned, are TRL's tool call and tool turn."""
    call = json.dumps({"name": "weather", "arguments": {"city": "Rome"}})
    turns = [("human", "Weather?"), ("function_call", call), ("observation", "sunny"), ("gpt", "S")]
    rows = [{"conversations": [{"from": who, "value": what} for who, what in turns]}]
    (row,) = example_set(rows, "rows", DataSettings()).rows
    tool = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    assert row["messages"] == [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [tool]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "S"},
    ]


WITHOUT_MARKS = partial(byte_tokenizer, chat_template=CHAT_TEMPLATE_WITHOUT_GENERATION)


@pytest.mark.parametrize(
    ("rows", "tokenizer", "error", "words"),
    [
        (PAIRS, byte_tokenizer, UsageError, "is for conversations"),
        ([{"messages": asked(c)} for c in CITIES], marked, DataError,
         "No token of example 0 in 'rows' is marked"),
        (TALKS, WITHOUT_MARKS, DataError, "does not mark the assistant's tokens"),
    ],
)  # fmt: skip
def test_what_the_assistants_mask_cannot_do(
    rows: Rows, tokenizer: Callable[[], Any], error: type[HlscoreError], words: str
) -> None:
    with pytest.raises(error, match=words):
        encoded(rows, tokenizer(), only=True)
    for objective in ("dpo", "grpo"):
        with pytest.raises(UsageError, match="--assistant-only-loss is for --objective sft"):
            ObjectiveSettings(objective=objective, assistant_only_loss=True)  # type: ignore[arg-type]


def test_the_mask_goes_from_the_command_to_the_trainer(tmp_path: Path) -> None:
    """It is printed, stored, in the next command, and in what is exported for TRL."""
    model = save_model(tmp_path / "model")
    data = write_rows(tmp_path / "chat.jsonl", TALKS)
    options = ("--rank", "4", "--bootstrap", "0", "-o", tmp_path / "out")
    done = run("rank", model, "--data", data, "--assistant-only-loss", *options)
    assert done.code == 0, done.err
    counted = sum(len(f"Sunny in {city}.|Yes, {city}.|") for city in CITIES)
    assert f"{counted} counted tokens (the assistant's tokens)" in done.out
    assert f"--data {data} --assistant-only-loss" in done.out.replace("\n", " ")
    plan = read_plan(tmp_path / "out" / "plan.json")
    assert plan.provenance.probes.loss_on == "assistant"
    assert read_report(tmp_path / "out" / "scores.parquet").probes.loss_on == "assistant"
    done = run("export", tmp_path / "out" / "plan.json", "--to", "trl", "-o", tmp_path / "trl")
    assert done.code == 0, done.err
    assert "assistant_only_loss: true" in (tmp_path / "trl" / "sft.yaml").read_text()
    assert "assistant_only_loss" not in (tmp_path / "trl" / "dpo.yaml").read_text()


def test_a_validation_says_that_its_mask_is_another() -> None:
    probes = SimpleNamespace(loss_on="assistant")
    planned = SimpleNamespace(provenance=SimpleNamespace(probes=probes))
    whole, only = (encoded(TALKS, marked(), only=only) for only in (False, True))
    (note,) = other_mask(whole, planned)  # type: ignore[arg-type]
    assert "a loss on the assistant's tokens, but this validation trains on all tokens" in note
    assert other_mask(only, planned) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("tools", "[", "not a list of tools"),
        ("tools", "{}", "not a list of tools"),
        ("chat_template_kwargs", "x", "is a string, not an object"),
    ],
)
def test_faulty_arguments_of_the_template(column: str, value: object, words: str) -> None:
    rows = [{"messages": talk(city), column: value} for city in CITIES]
    with pytest.raises(DataError, match=words):
        encoded(rows, qwen())
