"""The tokens and loss masks that examples become, and their halves.

The expected ids and masks are written by hand from what TRL's `SFTTrainer` does: the end of
sequence is appended to text and to completions, a prompt carries no loss, and every token of a
conversation does unless the assistant's alone are asked for. The same is compared with TRL itself
in test_trl_tokens.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from console import texts
from families import FAMILIES
from tokens import VOCAB_SIZE, byte_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import DataError
from hlscore.inputs.formats import example_set
from hlscore.probes.encode import encode
from hlscore.probes.units import ProbeSet, ProbeUnit, sequence, split_halves
from hlscore.settings import DataSettings

BOS_ID, EOS_ID = 257, 258
TEXTS = texts(6)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return FAMILIES["llama"].build()


def probes_of(
    rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel,
    *, max_length: int | None = None, seed: int = 0,
) -> ProbeSet:  # fmt: skip
    found = example_set(rows, "rows", DataSettings())
    return encode(found, tokenizer, model, max_length=max_length, groups=8, seed=seed)


def masks(probes: ProbeSet) -> dict[tuple[int, ...], str]:
    """The loss mask of each example by its ids: `x` where a token counts, `.` where not."""
    items = [item for half in probes.halves for group in half for item in group]
    return {item.input_ids: "".join(".x"[counts] for counts in item.counted) for item in items}


def ids(*parts: str | int) -> tuple[int, ...]:
    """Token ids of bytes and special tokens."""
    found = ([part] if isinstance(part, int) else list(part.encode()) for part in parts)
    return tuple(itertools.chain.from_iterable(found))


@pytest.mark.parametrize(
    ("row", "tokens", "expected", "mask"),
    [
        ({"text": "abc"}, {"add_bos": True}, (BOS_ID, "abc", EOS_ID), ".xxxx"),
        ({"text": "abc"}, {"eos": False}, ("abc",), ".xx"),
        ({"prompt": "ab", "completion": "cd"}, {"add_bos": True}, (BOS_ID, "abcd", EOS_ID),
         "...xxx"),
    ],
)  # fmt: skip
def test_special_tokens(
    model: PreTrainedModel, row: dict[str, str], tokens: dict[str, bool], expected: Any, mask: str
) -> None:
    other = {name: f"{text}?" for name, text in row.items()}
    found = masks(probes_of([row, other], byte_tokenizer(**tokens), model))
    assert found[ids(*expected)] == mask


def test_truncation(model: PreTrainedModel) -> None:
    """Long examples lose their end, and those that lose all loss are left out."""
    rows = [
        {"prompt": "ab", "completion": "cdef"},
        {"prompt": "abcdef", "completion": "g"},
        {"prompt": "a", "completion": "b"},
    ]
    probes = probes_of(rows, byte_tokenizer(), model, max_length=4)
    assert masks(probes) == {ids("abcd"): "..xx", ids("ab", EOS_ID): ".xx"}
    assert (probes.summary.truncated, probes.summary.dropped) == (2, 1)
    assert len(probes.summary.notes) == 2
    rows = [{"text": letter * 1000} for letter in "ab"]
    found = masks(probes_of(rows, byte_tokenizer(), model))  # the context is the default limit
    assert {len(key) for key in found} == {model.config.max_position_embeddings}


@pytest.mark.parametrize(
    ("pad", "eos", "expected"), [(True, True, 256), (False, True, EOS_ID), (False, False, 0)]
)
def test_padding_id(model: PreTrainedModel, pad: bool, eos: bool, expected: int) -> None:
    tokenizer = byte_tokenizer(pad=pad, eos=eos)
    assert probes_of(TEXTS, tokenizer, model).pad_token_id == expected
    if pad:
        tokenizer.add_tokens([f"<extra {i}>" for i in range(60)])
        tokenizer.pad_token = "<extra 59>"  # noqa: S105
        rows = model.get_input_embeddings().weight.shape[0]
        assert tokenizer.pad_token_id >= rows  # has no embedding
        assert probes_of(TEXTS, tokenizer, model).pad_token_id < rows


def test_largest_id_that_has_an_embedding(model: PreTrainedModel) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<x{number}>" for number in range(300 - VOCAB_SIZE + 1)])
    fits, beyond = [{"text": f"<x{number}>"} for number in (300 - VOCAB_SIZE - 1, 300 - VOCAB_SIZE)]
    assert (299, EOS_ID) in masks(probes_of([fits, *TEXTS], tokenizer, model))
    with pytest.raises(DataError, match="gives id 300"):
        probes_of([beyond, *TEXTS], tokenizer, model)


# Halves


def test_halves_do_not_depend_on_the_order(model: PreTrainedModel) -> None:
    forward = probes_of(TEXTS, byte_tokenizer(), model)
    backward = probes_of(TEXTS[::-1], byte_tokenizer(), model)
    assert forward.halves == backward.halves
    assert forward.summary.hash == backward.summary.hash
    assert forward.halves != probes_of(TEXTS, byte_tokenizer(), model, seed=1).halves


def _example(*numbers: int) -> ProbeUnit:
    return ProbeUnit((sequence(numbers, 0),), len(numbers) - 1)


@pytest.mark.parametrize("seed", range(5))
def test_copies_stay_in_one_group(seed: int) -> None:
    """Copies of an example across halves or groups would make noise look like signal."""
    examples = [_example(number, 1) for number in range(6) for _ in range(1 + 5 * (number % 2))]
    halves = split_halves(examples, groups=8, seed=seed)
    groups = [group for half in halves for group in half]
    assert all(halves)
    assert all(groups)
    assert sum(map(len, groups)) == len(examples)
    assert sum(len(set(group)) for group in groups) == 6


@pytest.mark.parametrize("count", [2, 3, 7, 16])
def test_halves_are_even(count: int) -> None:
    examples = [_example(number, 1) for number in range(count)]
    halves = split_halves(examples, groups=4, seed=0)
    sizes = [sum(len(group) for group in half) for half in halves]
    assert sizes == [(count + 1) // 2, count // 2]
    assert all(len(half) == min(4, size) for half, size in zip(halves, sizes, strict=True))
