"""Candidates against what each architecture is known to hold."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, Family
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, T5Config, T5ForConditionalGeneration

from hlscore.errors import ModelError, UsageError
from hlscore.inputs.identity import identify
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.records import Fingerprint
from hlscore.settings import CandidateSettings


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_candidates_are_the_linear_maps_of_the_blocks(family: Family) -> None:
    """Those written by hand in `families`; every other matrix is left out with a reason.

    The meta device gives the same.
    """
    model = family.build()
    found = {item.parameter: item for item in find_modules(model)}
    assert set(found) == {
        name for name, value in model.named_parameters(remove_duplicate=False) if value.dim() > 1
    }
    for layer, block in enumerate(family.blocks):
        for name, spec in block.maps.items():
            item = found.pop(family.block_prefix(layer) + spec.parameter(name))
            assert not item.skipped
            assert item.module == family.block_prefix(layer) + name
            assert (item.matrices, item.out_features, item.in_features) == spec.shape
            assert ((item.storage == "in_out"), item.layer) == (spec.transposed, layer)
            # Whether a router is a linear layer depends on the version of transformers.
            assert spec.kind in (item.form, "router")
    assert all(item.skipped and item.reason for item in found.values())
    assert {name for name in found if name.startswith(f"{family.blocks_path}.")} == {
        family.block_prefix(layer) + name
        for layer, block in enumerate(family.blocks)
        for name in block.others
    }
    with torch.device("meta"):
        shape = family.auto_class.from_config(family.config())
    shape.tie_weights()
    assert find_modules(shape) == find_modules(model)


def test_parameter_counts_hold_the_bias() -> None:
    model = FAMILIES["gpt2"].build()
    for item in candidates_of(find_modules(model)):
        module = model.get_submodule(item.module)
        assert item.n_params == sum(p.numel() for p in module.parameters())


def test_untied_head_and_embeddings_come_by_request() -> None:
    model = FAMILIES["llama"].build()
    assert not any(i.layer is None for i in candidates_of(find_modules(model)))
    head = candidates_of(find_modules(model, CandidateSettings(head=True)))
    assert [i.module for i in head if i.layer is None] == ["lm_head"]


def test_globs_choose_by_full_name() -> None:
    model = FAMILIES["llama"].build()
    chosen = CandidateSettings(include=("*.mlp.*",), exclude=("model.layers.1.*",))
    names = [item.module for item in candidates_of(find_modules(model, chosen))]
    assert names == [f"model.layers.0.mlp.{kind}_proj" for kind in ("gate", "up", "down")]
    with pytest.raises(UsageError, match="--include 'mlp' matches none"):
        find_modules(model, CandidateSettings(include=("mlp",)))
    with pytest.raises(UsageError, match=r"leaves? no candidate"):
        find_modules(model, CandidateSettings(include=("*.mlp.*",), exclude=("*",)))


def test_models_without_decoder_blocks_are_refused() -> None:
    config = T5Config(d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2, vocab_size=20)
    with pytest.raises(ModelError, match="encoder-decoder"):
        find_modules(T5ForConditionalGeneration(config))
    model = FAMILIES["llama"].build()
    model.model.layers = nn.ModuleList()
    with pytest.raises(ModelError, match="no candidate modules"):
        find_modules(model)


def test_layer_ten_is_not_layer_one() -> None:
    config = FAMILIES["llama"].config()
    config.num_hidden_layers = 12
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    layers = {item.module: item.layer for item in candidates_of(find_modules(model))}
    assert layers["model.layers.1.mlp.up_proj"] == 1
    assert layers["model.layers.11.mlp.up_proj"] == 11


def test_fingerprint_ignores_dtype_and_sees_weights_and_shapes() -> None:
    def fingerprint(model: PreTrainedModel) -> Fingerprint:
        return identify(model, "mine", None).fingerprint

    model = FAMILIES["mixtral"].build(dtype=torch.bfloat16)
    first = fingerprint(model)
    assert fingerprint(model.float()) == first
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.experts.down_proj").add_(1)
    changed = fingerprint(model)
    assert changed.structure == first.structure
    assert changed.weights != first.weights
    assert fingerprint(FAMILIES["llama"].build()).structure != first.structure


@pytest.mark.parametrize(
    "asked", [{"head": True}, {"embeddings": True}, {"head": True, "embeddings": True}]
)
def test_tied_weight_is_one_module_and_joins_by_either_name(asked: dict[str, bool]) -> None:
    found = find_modules(FAMILIES["gpt2"].build(), CandidateSettings(**asked))
    assert [i.module for i in candidates_of(found) if i.layer is None] == ["transformer.wte"]
    head = next(item for item in found if item.module == "lm_head")
    assert head.reason == "tied to transformer.wte"


def test_unknown_packing_says_why_there_are_no_candidates() -> None:
    model = FAMILIES["llama"].build()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            del module.in_features
            module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="weights are quantized"):
        find_modules(model)
