"""Checkpoints with text and other inputs are ranked as the class that trainers load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from console import QUICK, change_config, hlscore, save_model
from families import FAMILIES
from transformers import (
    Emu3Config,
    Llama4Config,
    MllamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
)

from hlscore.artifacts.plan_file import read_plan
from hlscore.errors import ModelError, UsageError
from hlscore.inputs.model import load_model, load_shape
from hlscore.inputs.stored_weights import StoredWeights
from hlscore.settings import ModelSettings
from hlscore.training.apply import apply

_TEXT: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 256, "eos_token_id": 258, "bos_token_id": 257, "pad_token_id": 256,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
_QWEN_TEXT: dict[str, Any] = _TEXT | {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 1, "linear_num_value_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1],
        "mrope_interleaved": True, "partial_rotary_factor": 0.5,
    },
}  # fmt: skip
_QWEN: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 24, "depth": 1, "num_heads": 2,
        "out_hidden_size": 32, "patch_size": 8, "num_position_embeddings": 16,
    },
    "image_token_id": 290, "video_token_id": 291, "vision_start_token_id": 292,
    "vision_end_token_id": 293,
}  # fmt: skip
_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}  # fmt: skip

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "Qwen3_5": lambda: Qwen3_5Config(text_config=_QWEN_TEXT, **_QWEN),
    "Qwen3_5Moe": lambda: Qwen3_5MoeConfig(text_config=_QWEN_TEXT | _EXPERTS, **_QWEN),
    "Llama4": lambda: Llama4Config(
        text_config=_TEXT
        | {
            "intermediate_size_mlp": 48, "num_local_experts": 2, "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
        },
        vision_config=_VISION
        | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
        image_token_index=290, boi_token_index=291, eoi_token_index=292,
    ),
    "Mllama": lambda: MllamaConfig(
        text_config=_TEXT | {"cross_attention_layers": [1]},
        vision_config={
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_global_layers": 1, "attention_heads": 2, "image_size": 16, "patch_size": 8,
            "vision_output_dim": 32, "max_num_tiles": 4, "intermediate_layers_indices": [0],
        },
        image_token_index=290,
    ),
    "Emu3": lambda: Emu3Config(
        text_config=_TEXT,
        vq_config={
            "codebook_size": 8, "embed_dim": 4, "latent_channels": 4, "base_channels": 32,
            "channel_multiplier": [1], "num_res_blocks": 1, "attn_resolutions": [],
            "hidden_size": 32, "num_attention_heads": 1,
        },
        vocabulary_map={"<image>": 290} | {f"<|visual token {i:06d}|>": 280 + i for i in range(8)},
    ),
}  # fmt: skip


def named_class(name: str) -> Any:
    return getattr(transformers, f"{name}ForConditionalGeneration")


@pytest.fixture(scope="module", params=list(CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of a family, by whose name it is called."""
    name: str = request.param
    torch.manual_seed(0)
    model = named_class(name)(CONFIGS[name]()).eval()
    return save_model(tmp_path_factory.mktemp("saved") / name, model=model)


def as_trainers_load(folder: Path) -> PreTrainedModel:
    from trl.trainer.utils import create_model_from_path

    model: PreTrainedModel = create_model_from_path(str(folder))
    return model


def assert_plan_fits(plan: Path, folder: Path) -> None:
    """The plan checks against the model, and its seed adapter can be written."""
    checked = hlscore("check", plan, "--model", folder, "--weights")
    assert (checked.code, checked.err) == (0, "")
    assert hlscore("export", plan, "--to", "seed-adapter", "-o", plan.parent / "seed").code == 0


def settings(folder: Path, **options: Any) -> ModelSettings:
    return ModelSettings(model=str(folder), device="cpu", **options)


def test_every_way_to_see_a_model_sees_the_class_that_the_configuration_names(folder: Path) -> None:
    loaded = load_model(settings(folder))
    stored = StoredWeights(settings(folder))
    shape, _ = load_shape(settings(folder))
    assert type(loaded.model) is type(shape) is type(stored.shape) is named_class(folder.name)
    assert loaded.identity.architecture == named_class(folder.name).__name__
    assert loaded.identity.notes == ()
    wanted = as_trainers_load(folder).state_dict()
    assert loaded.model.state_dict().keys() == wanted.keys() == shape.state_dict().keys()
    streamed = stored.read((), lambda *_: None)
    assert streamed == loaded.identity.fingerprint.weights


def test_a_plan_is_checked_exported_and_trained_on_what_trainers_load(
    folder: Path, tmp_path: Path
) -> None:
    out, plan_path = tmp_path / "out", tmp_path / "out" / "plan.json"
    # LoRA does not run on Llama 4's routers, which return a tuple.
    locks = ("--lock", "*.router=frozen") if folder.name == "Llama4" else ()
    assert hlscore("rank", folder, *QUICK, "--budget", "0.2", *locks, "-o", out).code == 0
    assert_plan_fits(plan_path, folder)
    model = as_trainers_load(folder)
    plan = read_plan(plan_path)
    wrapped = apply(model, plan)
    before = {name: value.clone() for name, value in wrapped.named_parameters()}
    tokens = torch.arange(10)[None]
    logits = wrapped(input_ids=tokens).logits
    torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).backward()
    torch.optim.SGD([p for p in wrapped.parameters() if p.grad is not None], lr=1.0).step()
    changed = {name for name, value in wrapped.named_parameters() if not value.equal(before[name])}
    full = {item.module for item in plan.modules if item.mode == "full"}
    moved = {name.partition(".modules_to_save")[0] for name in changed if "modules_to_save" in name}
    assert {name.removeprefix("base_model.model.") for name in moved} == full


def test_text_only_loads_the_text_class_and_the_plan_says_so(folder: Path, tmp_path: Path) -> None:
    family = folder.name
    out, plan_path = tmp_path / "out", tmp_path / "out" / "plan.json"
    done = hlscore("rank", folder, *QUICK, "--text-only", "-o", out)
    if family == "Emu3":  # transformers cannot load the text class from the whole checkpoint
        assert done.code == 3
        assert "lack 21 tensors" in done.message
        return
    assert any("--text-only" in note and named_class(family).__name__ in note
               for note in done.notes)  # fmt: skip
    plan = read_plan(plan_path)
    assert plan.model.architecture == f"{family}ForCausalLM"
    assert plan.modules[0].module.startswith("model.layers.")
    assert any("--text-only" in note for note in plan.notes)
    assert_plan_fits(plan_path, folder)
    apply(transformers.AutoModelForCausalLM.from_pretrained(folder), plan)
    weights = hlscore("rank", folder, "--data", "none", "--text-only", "-o", tmp_path / "weights")
    assert weights.code == 0
    streamed = read_plan(tmp_path / "weights" / "plan.json").model
    assert streamed.fingerprint == plan.model.fingerprint
    with pytest.raises(ModelError, match="differs"):
        apply(as_trainers_load(folder), plan)


def test_commands_without_weights_follow_both_ways(tmp_path: Path) -> None:
    folder = save_model(tmp_path, model=named_class("Emu3")(CONFIGS["Emu3"]()).eval())
    for name in ("modules", "estimate"):
        whole, text = (hlscore(name, folder, *more, "--json") for more in ((), ("--text-only",)))
        assert (whole.code, text.code) == (0, 0)
        assert "model.text_model.layers.0" in whole.out or name != "modules"
        assert whole.out != text.out


def test_text_only_needs_a_text_class_and_changes_nothing_for_a_text_model(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "llava", model=FAMILIES["llava"].build())
    with pytest.raises(UsageError, match="no text-only class for llava") as error:
        load_shape(settings(folder, text_only=True))
    assert "LlavaForConditionalGeneration" in str(error.value.hint)
    folder = save_model(tmp_path / "llama")
    loaded = load_model(settings(folder, text_only=True))
    assert loaded.identity == load_model(settings(folder)).identity


@pytest.mark.parametrize(
    ("named", "command"),
    [
        ("LlamaForSequenceClassification", "modules"),
        ("LlamaModel", "rank --dry-run"),
        ("LlamaForTokenClassification", "rank"),
    ],
)
def test_classes_without_an_output_head_are_refused(
    named: str, command: str, tmp_path: Path
) -> None:
    folder = save_model(tmp_path)
    change_config(folder, architectures=[named])
    name, *options = command.split()
    outcome = hlscore(name, folder, *options)
    assert outcome.code == 3
    assert f"names {named}, which is not a causal language model" in outcome.message
    assert "LlamaForCausalLM" in outcome.message


def test_a_name_that_transformers_does_not_know_falls_back_to_the_configuration(
    tmp_path: Path,
) -> None:
    folder = save_model(tmp_path)
    for names in (["LLaMAForCausalLM"], ["Trainer"], ["logging"], [""], [], None):
        change_config(folder, architectures=names)
        assert type(load_model(settings(folder)).model).__name__ == "LlamaForCausalLM"
