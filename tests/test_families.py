"""Checks the tiny models and the tokenizer that other tests are built on."""

from pathlib import Path

import pytest
import torch
from families import FAMILIES, VOCAB_SIZE, Family, token_batch
from tokens import (
    CHAT_TEMPLATE_WITH_GENERATION,
    CHAT_TEMPLATE_WITHOUT_GENERATION,
    EOS,
    PAD,
    byte_tokenizer,
)
from torch import nn
from transformers import AutoTokenizer
from transformers.pytorch_utils import Conv1D

CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "né"},
]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_is_what_is_written_down(family: Family) -> None:
    """Its blocks hold exactly the recorded matrices, in the orientation that the modules name.

    Each matrix gets a finite gradient, which is zero for an expert that is never reached only.
    """
    model = family.build()
    assert not model.training
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied is family.tied_head
    batch = token_batch()
    logits = model(**batch, use_cache=False).logits[:, :-1]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten())
    torch.autograd.backward(loss)
    for index, (block, expected) in enumerate(
        zip(family.block_list(model), family.blocks, strict=True)
    ):
        matrices = {name: p for name, p in block.named_parameters() if p.ndim >= 2}
        maps = {spec.parameter(name): spec.stored_shape for name, spec in expected.maps.items()}
        found = {name: tuple(parameter.shape) for name, parameter in matrices.items()}
        assert found == maps | dict(expected.others)
        for name, spec in expected.maps.items():
            gradient = matrices[spec.parameter(name)].grad
            assert gradient is not None
            assert gradient.isfinite().all()
            if spec.kind == "experts":
                owner = block.get_submodule(name.rpartition(".")[0])
                assert getattr(owner, "is_transposed", None) is spec.transposed
                dead = [number for number, matrix in enumerate(gradient) if not matrix.any()]
                assert dead == ([3] if (family.name, index) == ("qwen3_moe_unreached", 1) else [])
                continue
            assert gradient.any()
            owner = block.get_submodule(name)
            # Whether a router is a linear layer depends on the version of transformers.
            assert isinstance(owner, nn.Linear) is (spec.kind == "linear") or spec.kind == "router"
            assert isinstance(owner, Conv1D) is (spec.kind == "conv1d")
            if isinstance(owner, nn.Linear):
                assert (owner.out_features, owner.in_features) == spec.shape[1:]
            if isinstance(owner, Conv1D):
                assert (owner.nf, owner.nx) == spec.shape[1:]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_seeds_reproduce(family: Family) -> None:
    """A seed fixes every weight in every dtype and leaves the global random state alone."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = family.build(seed=1), family.build(torch.float64, seed=1), family.build()
    assert torch.equal(torch.get_rng_state(), state)
    weights, others = first.state_dict(), other.state_dict()
    for name, value in second.state_dict().items():
        assert torch.equal(weights[name], value.float())
    for name, spec in family.blocks[0].maps.items():
        key = family.block_prefix(0) + spec.parameter(name)
        assert not torch.equal(weights[key], others[key])


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("add_bos", [True, False])
def test_tokenizer_survives_saving(tmp_path: Path, pad: bool, eos: bool, add_bos: bool) -> None:
    """A byte is its own id, special tokens follow, and loading changes nothing."""
    template = CHAT_TEMPLATE_WITH_GENERATION if pad else None
    tokenizer = byte_tokenizer(pad=pad, eos=eos, add_bos=add_bos, chat_template=template)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "naïve\n\t\x00日 don't  "
    for each in (tokenizer, loaded):
        assert each(text)["input_ids"] == [257] * add_bos + list(text.encode())
        assert each.decode(list(text.encode())) == text
        assert each(f"a{EOS}{PAD}")["input_ids"][-3:] == [97, 258, 256]
        assert len(each) <= VOCAB_SIZE
    assert loaded.pad_token_id == (256 if pad else None)
    assert loaded.eos_token_id == (258 if eos else None)
    assert loaded.chat_template == template


def test_chat_templates_agree() -> None:
    """Both templates write the same text; one also tells what the assistant said."""
    marked = byte_tokenizer(chat_template=CHAT_TEMPLATE_WITH_GENERATION)
    unmarked = byte_tokenizer(chat_template=CHAT_TEMPLATE_WITHOUT_GENERATION)
    text, same = (
        tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
        for tokenizer in (marked, unmarked)
    )
    assert text == same
    encoded = marked.apply_chat_template(
        CONVERSATION, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    assert marked.decode([token for token, mask in pairs if mask]) == "ho<|end|>né<|end|>"
