"""A sample of `benchmarks/architectures.py`: architectures that hold something out of the way."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
from benchmark_scripts import BENCHMARKS, part, scripts_in
from families import FAMILIES
from newest import NEWEST
from plans import plan_for
from torch import nn
from transformers import CohereConfig, CohereForCausalLM, PreTrainedModel

from hlscore.exporters.adapter_config import adapter_config
from hlscore.exporters.limits import PEFT_LIMITS, ExportError, check_limits, nearest
from hlscore.inputs.modules import candidates_of, decoder_blocks, find_modules
from hlscore.records import Candidate
from hlscore.training.apply import apply

SAMPLE = (
    "modernbert-decoder", "ernie4_5_moe", "deepseek_v4", "dbrx", "inkling_text", "glm_moe_dsa",
    "xlnet", "zamba", "recurrent_gemma", "longcat_flash",
)  # fmt: skip
MULTIMODAL = ("qwen2_5_vl", "mistral3", "ernie4_5_vl_moe", "qwen2_audio")

_path = scripts_in(BENCHMARKS)


def build(family: str) -> PreTrainedModel:
    model: PreTrainedModel = part("tiny_architectures").build(family)
    return model


@cache
def found_in(family: str) -> dict[str, Candidate]:
    return {item.parameter: item for item in find_modules(build(family))}


def forms(family: str, ending: str) -> dict[str, tuple[str, int]]:
    return {
        name: (item.form, item.matrices)
        for name, item in found_in(family).items()
        if name.endswith(ending) and not item.skipped
    }


@pytest.mark.parametrize("family", [*SAMPLE, *MULTIMODAL, pytest.param("molmo2", marks=NEWEST)])
def test_candidates_gradients_and_a_training_step_are_right(family: str) -> None:
    """Against torch's own products, a plain backward pass, and what one step moves.

    Checkpoints that read images or sound are loaded as trainers load them, and read text alone.
    """
    script = part("architectures")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        examine = script.examine if family in SAMPLE else script.examine_multimodal
        outcome = examine(family)
    assert outcome.right, outcome
    assert outcome.lora > 0


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("florence2", "encoder-decoder"),
        pytest.param("diffusion_gemma", "not a causal language model", marks=NEWEST),
        ("blip", "pixel_values"),
        ("qwen3_omni_moe", "not a causal language model"),  # holds one, has no forward pass
        ("kyutai_speech_to_text", "forward and backward pass"),  # tokens come with sound
    ],
)
def test_what_text_alone_cannot_train_is_refused(family: str, reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = part("architectures").examine_multimodal(family)
    assert outcome.verdict == "refused", outcome
    assert reason in outcome.refused


def test_a_model_that_sees_later_tokens_says_so() -> None:
    """Without an image the text of PaliGemma is all prefix, which attends to itself whole."""
    said = {}
    for family in ("paligemma", "mistral3"):
        model = part("tiny_architectures").build_multimodal(family)
        notes = part("architectures").rank_tiny(model).report.run.notes
        said[family] = [note for note in notes if "not causal on text alone" in note]
    assert [len(notes) for notes in said.values()] == [1, 0]


def test_norms_of_single_heads_are_no_linear_maps() -> None:
    config = CohereConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, use_qk_norm=True,
    )  # fmt: skip
    chameleon = part("tiny_architectures").build_multimodal("chameleon")
    for model in (CohereForCausalLM(config), chameleon):
        items = [i for i in find_modules(model) if i.module.endswith(("q_norm", "k_norm"))]
        assert {item.left_out for item in items} == {"not_linear"}


def test_a_decoder_that_is_the_output_map_is_not_trusted() -> None:
    model = build("modernbert-decoder")
    assert isinstance(model.get_decoder(), nn.Linear)
    assert list(decoder_blocks(model)) == [f"model.layers.{index}" for index in range(4)]


@pytest.mark.parametrize(
    ("family", "ending", "count"),
    [
        ("ernie4_5_moe", "mlp.gate.weight", 3),  # holds a child with its correction bias
        ("deepseek_v4", "mlp.gate.weight", 4),  # holds its activation
        ("deepseek_v4", "o_a_proj.weight", 4),  # works in groups
        ("llama4_text", "router.weight", 4),  # returns two tensors
        ("phimoe", "router.weight", 4),
    ],
)
def test_what_is_no_plain_linear_layer_is_adapted_by_parameter(
    family: str, ending: str, count: int
) -> None:
    assert list(forms(family, ending).values()) == [("parameter", 1)] * count
    found = adapter_config(plan_for(build(family), ()))
    by_parameter = [name for name in found["target_parameters"] if name.endswith(ending)]
    assert len(by_parameter) == count
    assert not any(f"{name}.weight".endswith(ending) for name in found["target_modules"])


def test_linear_layers_of_another_class_stay_linear() -> None:
    """The layers of Falcon compute the product in two steps, and give what a linear layer does."""
    model = build("falcon")
    candidates = candidates_of(find_modules(model))
    owners = {type(model.get_submodule(item.module)) for item in candidates}
    assert nn.Linear not in owners
    assert {item.form for item in candidates} == {"linear"}


@pytest.mark.parametrize(
    ("family", "ending", "reason"),
    [
        ("dbrx", "ffn.experts.mlp.w1", "flat_experts"),
        ("dbrx", "ffn.experts.mlp.w2", "flat_experts"),
        ("deepseek_v4", "attn_hc.fn", "custom"),
        ("xlnet", "rel_attn.q", "custom"),
        ("xlnet", "rel_attn.seg_embed", "custom"),
        ("zamba", "mamba.A_log", "custom"),
    ],
)
def test_what_is_left_out_has_a_true_reason(family: str, ending: str, reason: str) -> None:
    found = [item.left_out for name, item in found_in(family).items() if name.endswith(ending)]
    assert found == [reason] * 4


def test_stacks_of_matrices_are_candidates() -> None:
    """Of one expert, and of what is no expert."""
    found = forms("inkling_text", "shared_experts.down_proj")
    assert list(found.values()) == [("experts", 1)] * 4
    assert len(forms("zamba", "mamba.x_proj_weight")) == 4
    assert len(forms("recurrent_gemma", "rg_lru.input_gate_weight")) == 3


@pytest.mark.parametrize("family", ["deepseek_v4", "phimoe", "ernie4_5_moe", "zamba"])
def test_the_meta_device_gives_the_same_candidates(family: str) -> None:
    model = build(family)
    before = find_modules(model)
    assert find_modules(model.to("meta")) == before


def test_biases_of_experts_count() -> None:
    model = FAMILIES["gpt_oss"].build()
    for item in candidates_of(find_modules(model)):
        if item.form == "experts":
            own: Any = model.get_parameter(item.parameter)
            bias: Any = model.get_parameter(f"{item.parameter}_bias")
            assert item.n_params == own.numel() + bias.numel()


def test_a_parameter_whose_owner_holds_other_adapters_is_refused() -> None:
    """PEFT wraps the owner of a parameter: names inside change, and input must be positional."""
    model = build("zamba")
    around = "model.layers.0.mamba"
    plan = plan_for(model, ("*=frozen", f"{around}.x_proj_weight=lora", f"{around}.in_proj=lora"))
    with pytest.raises(ExportError, match=f"x_proj_weight' cannot be .*'{around}', which holds"):
        check_limits(plan, PEFT_LIMITS)
    with pytest.raises(ExportError, match="x_proj_weight' cannot be trained"):
        apply(model, plan)
    changed, _ = nearest(plan, PEFT_LIMITS)
    assert [item.module for item in changed.lora_modules] == [f"{around}.in_proj"]
    apply(model, changed)


@NEWEST
def test_a_norm_inside_of_experts_trains_with_them() -> None:
    """PEFT copies what holds the experts, with all that is in it."""
    model = part("tiny_architectures").build_multimodal("muse_spark")
    around = "model.language_model.layers.1.mlp.experts"
    names = ("gate_up_proj", "down_proj")
    plan = plan_for(model, ("*=frozen", *(f"{around}.{name}=full" for name in names)))
    wrapped = apply(model, plan)
    place = f"base_model.model.{around}.modules_to_save.default."
    trained = {name for name, item in wrapped.named_parameters() if item.requires_grad}
    assert trained == {place + name for name in (*names, "post_expert_norm.weight")}


def test_the_loss_never_reaches_an_indexer() -> None:
    """What picks tokens gets no gradient: it stays frozen, and torch says nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)
        result = part("architectures").rank_tiny(build("glm_moe_dsa"))
    modes = {item.module: item.mode for item in result.plan.modules}
    indexers = {name for name in modes if ".indexer." in name}
    assert len(indexers) == 12
    assert {modes[name] for name in indexers} == {"frozen"}
    (note,) = (text for text in result.plan.notes if "No probe gradient" in text)
    assert "and 9 more" in note
    rows = {row.module: row.status for row in result.rows}
    assert {rows[name] for name in indexers} == {"unreached"}
