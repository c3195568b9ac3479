"""Checks the tiny models and the tokenizer that other tests are built on."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import FAMILIES, PAD_ID, VOCAB_SIZE, Family, MapSpec, left_pad, token_batch
from tokens import (
    CHAT_TEMPLATE_WITH_GENERATION,
    CHAT_TEMPLATE_WITHOUT_GENERATION,
    EOS,
    PAD,
    byte_tokenizer,
)
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)

CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "né"},
]


def _maps(family: Family) -> Iterator[tuple[int, str, MapSpec]]:
    for index, block in enumerate(family.blocks):
        for name, spec in block.maps.items():
            yield index, name, spec


def _gradient(model: PreTrainedModel, family: Family, index: int, parameter: str) -> torch.Tensor:
    gradient = model.get_parameter(family.block_prefix(index) + parameter).grad
    assert isinstance(gradient, torch.Tensor)
    return gradient


def _backward(model: PreTrainedModel) -> torch.Tensor:
    """Runs the default batch forward and backward and returns the loss."""
    batch = token_batch()
    logits = model(**batch, use_cache=False).logits
    loss = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()
    )
    torch.autograd.backward(loss)
    return loss.detach()


@every_family
def test_blocks_hold_what_is_written_down(family: Family) -> None:
    """A plain walk finds exactly the recorded parameters of two or more dimensions."""
    blocks = family.block_list(family.build())
    assert len(blocks) == len(family.blocks)
    for block, expected in zip(blocks, family.blocks, strict=True):
        found = {
            name: tuple(parameter.shape)
            for name, parameter in block.named_parameters()
            if parameter.ndim >= 2
        }
        maps = {spec.parameter(name): spec.stored_shape for name, spec in expected.maps.items()}
        assert found == maps | dict(expected.others)


@every_family
def test_orientation_is_what_the_modules_say(family: Family) -> None:
    """The recorded outputs and inputs are those that the owning modules name."""
    blocks = family.block_list(family.build())
    for index, name, spec in _maps(family):
        if spec.kind == "experts":
            owner = blocks[index].get_submodule(name.rpartition(".")[0])
            assert getattr(owner, "is_transposed", None) is spec.transposed
            continue
        owner = blocks[index].get_submodule(name)
        # Whether a router is a linear layer depends on the version of transformers.
        if spec.kind != "router":
            assert isinstance(owner, nn.Linear) is (spec.kind == "linear")
        if isinstance(owner, nn.Linear):
            assert (owner.out_features, owner.in_features) == spec.shape[1:]
        assert isinstance(owner, Conv1D) is (spec.kind == "conv1d")
        if isinstance(owner, Conv1D):
            assert (owner.nf, owner.nx) == spec.shape[1:]


@every_family
def test_decoder_is_where_it_should_be(family: Family) -> None:
    """The model names its text decoder, and that one holds the blocks directly."""
    model = family.build()
    decoder = model.get_decoder()
    blocks = family.block_list(model)
    assert decoder is model.get_submodule(family.decoder_path)
    assert any(child is blocks for child in decoder.children())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied is family.tied_head
    assert model.get_input_embeddings().num_embeddings == VOCAB_SIZE
    assert not model.training


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_map_gets_a_gradient(family: Family, dtype: torch.dtype) -> None:
    """Each matrix gets a finite gradient, which is zero for unreached experts only."""
    model = family.build(dtype)
    assert _backward(model).isfinite()
    for index, name, spec in _maps(family):
        gradient = _gradient(model, family, index, spec.parameter(name))
        assert gradient.dtype is dtype
        assert gradient.isfinite().all()
        if spec.kind != "experts":
            gradient = gradient.unsqueeze(0)
        dead = [number for number, matrix in enumerate(gradient) if not matrix.any()]
        assert tuple(dead) == family.unreached.get((index, name), ())


@every_family
def test_seeds_reproduce(family: Family) -> None:
    """A seed fixes every weight in every dtype and leaves the global random state alone."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = family.build(seed=1), family.build(torch.float64, seed=1), family.build()
    assert torch.equal(torch.get_rng_state(), state)
    weights = first.state_dict()
    assert all(
        torch.equal(weights[key], value.float()) for key, value in second.state_dict().items()
    )
    prefix = family.block_prefix(0)
    for name, spec in family.blocks[0].maps.items():
        key = prefix + spec.parameter(name)
        assert not torch.equal(weights[key], other.state_dict()[key])


@every_family
def test_left_padding_changes_nothing(family: Family) -> None:
    """Real tokens get the same logits with padding before them."""
    model = family.build()
    batch = token_batch()
    padded = left_pad(batch, 5)
    named = "position_ids" in inspect.signature(model.forward).parameters
    assert named is family.takes_position_ids
    if not named:
        del padded["position_ids"]
    with torch.no_grad():
        plain = model(**batch, use_cache=False).logits
        shifted = model(**padded, use_cache=False).logits[:, 5:]
    torch.testing.assert_close(shifted, plain, atol=1e-4, rtol=0.0)


def test_left_pad_fills_in_positions() -> None:
    """Positions count from the first real token."""
    padded = left_pad(token_batch(rows=1, length=3), 2)
    assert padded["input_ids"][0, :2].tolist() == [PAD_ID, PAD_ID]
    assert padded["attention_mask"].tolist() == [[0, 0, 1, 1, 1]]
    assert padded["position_ids"].tolist() == [[0, 0, 0, 1, 2]]


def test_token_ids_are_bytes() -> None:
    """A byte is its own id, and special tokens follow."""
    text = "naïve\n\t\x00日 don't  "
    tokenizer = byte_tokenizer()
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer(f"a{EOS}{PAD}")["input_ids"] == [97, 258, 256]
    assert tokenizer.decode(list(text.encode())) == text
    assert len(tokenizer) <= VOCAB_SIZE


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("add_bos", [True, False])
def test_tokenizer_survives_saving(tmp_path: Path, pad: bool, eos: bool, add_bos: bool) -> None:
    """The tokenizer that is loaded does what the saved one did."""
    template = CHAT_TEMPLATE_WITH_GENERATION if pad else None
    tokenizer = byte_tokenizer(pad=pad, eos=eos, add_bos=add_bos, chat_template=template)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"héllo\n  wörld{EOS}"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded(text)["input_ids"][0] == 257) is add_bos
    assert loaded.pad_token_id == (256 if pad else None)
    assert loaded.eos_token_id == (258 if eos else None)
    assert loaded.chat_template == template


def test_chat_templates_agree() -> None:
    """Both templates write the same text; one also tells what the assistant said."""
    marked = byte_tokenizer(chat_template=CHAT_TEMPLATE_WITH_GENERATION)
    unmarked = byte_tokenizer(chat_template=CHAT_TEMPLATE_WITHOUT_GENERATION)
    texts = [
        tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
        for tokenizer in (marked, unmarked)
    ]
    assert texts[0] == texts[1]
    encoded = marked.apply_chat_template(
        CONVERSATION, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    said = marked.decode([token for token, mask in pairs if mask])
    assert said == "ho<|end|>né<|end|>"
