"""How PEFT names weights, and a whole plan as the configuration of one PEFT adapter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.errors import UsageError
from hlscore.planning.parts import default_rank
from hlscore.records import tied_modules

if TYPE_CHECKING:
    from peft import LoraConfig

# With no target PEFT raises, and without the field it would choose targets of its own.
NO_TARGETS = "dummy-target-modules"

# The only names by which PEFT finds the weights that are tied to the input embedding.
TIEABLE = ("embed_tokens", "lm_head")

# For mixture-of-experts models whose experts transformers 5 fuses, PEFT turns every LoRA target
# that ends in the old name of an expert matrix into the experts of all layers, also the exact name
# of a dense layer; a target that names the parameter is left alone. These are the last parts of
# names that it rewrites, by model type. A type too many costs nothing, as any model allows names
# of parameters; a type too few would train other weights than planned.
REWRITTEN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("minimax", "minimax_m2", "mixtral"), ("gate", "w1", "w2", "w3")),
    **dict.fromkeys((
        "Dots3NoteTextModel", "UnlimitedOcrTextModel", "afmoe", "beam", "cohere2_moe",
        "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "exaone_moe",
        "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe",
        "longcat_flash", "mellum", "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_next",
        "qwen3_omni_moe", "qwen3_omni_moe_text", "qwen3_omni_moe_thinker", "solar_open",
    ), ("gate", "gate_proj", "up_proj", "down_proj")),
}  # fmt: skip

# Linear layers whose weight is read past an adapter, by model type: always (`dt_proj`, the router
# of LongCat), in training mode (Gemma 3n), or where fast kernels are installed. PEFT refuses some
# of these and trains others for nothing.
_READ_PAST: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("falcon_mamba", "mamba"), ("out_proj", "dt_proj", "x_proj")),
    **dict.fromkeys(
        ("bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2"), ("out_proj",)
    ),
    **dict.fromkeys(("gemma3n", "gemma3n_text"), ("correction_coefs",)),
    "jamba": ("dt_proj",),
    "longcat_flash": ("classifier",),
}


def needs_parameter_name(plan: Plan, item: PlanModule) -> bool:
    """Whether LoRA reaches a weight by the name of its parameter only, whatever its mode."""
    if item.form in ("parameter", "experts"):  # no linear layers
        return True
    leaf = item.module.rpartition(".")[2]
    return item.form != "embedding" and leaf in REWRITTEN.get(plan.model.model_type, ())


def is_read_past(plan: Plan, item: PlanModule) -> bool:
    """Whether LoRA on a weight does nothing, at least on some machines; full fine-tuning works."""
    leaf = item.module.rpartition(".")[2]
    return leaf in _READ_PAST.get(plan.model.model_type, ())


def lora_name(plan: Plan, item: PlanModule) -> str:
    """Name by which PEFT puts LoRA on a weight, whatever its mode."""
    return item.parameter if needs_parameter_name(plan, item) else item.module


def pattern(name: str) -> str:
    """A key of `rank_pattern` and `alpha_pattern` that matches one full name and no other."""
    return f"^{re.escape(name)}"  # without `^` PEFT matches the ends of names


def never_packed(plan: Plan) -> Iterator[tuple[str, str]]:
    """Full names of the modules that cannot be trained once quantized, and what trains them."""
    for item in plan.full:
        yield item.holder, "trained in full"
    for item in plan.lora_modules:
        if item.form in ("linear", "conv1d") and needs_parameter_name(plan, item):
            yield item.module, "given LoRA by parameter"


def skip_modules(plan: Plan) -> list[str]:
    """Modules to keep out of 4-bit and 8-bit loading, so that the plan can be put on the model.

    Pass them as `BitsAndBytesConfig(llm_int8_skip_modules=...)`, also when the adapter is loaded
    again: a packed weight can neither be trained in full nor carry LoRA by parameter.
    """
    heads = [item.module for item in plan.skipped if item.left_out == "output_head"]
    names = sorted({name for name, _ in never_packed(plan)} - {"lm_head", *heads})
    return [*names, *dict.fromkeys([*heads, "lm_head"])]


def ties_weights(plan: Plan) -> bool:
    """Whether PEFT has to keep a tied embedding tied while it is trained in full."""
    tied = tied_modules(plan.skipped)
    return any(item.module in tied for item in plan.full)


def adapter_config(plan: Plan, base: str | None = None) -> dict[str, Any]:
    """The fields of an `adapter_config.json` that carries a whole plan within PEFT's limits.

    Every name is a full one and every pattern matches one weight: PEFT matches the ends of names,
    and would train more than the plan otherwise. `base` replaces the plan's base model.
    """
    adapters = sorted(plan.lora_modules, key=lambda item: item.module)
    targets = [item.module for item in adapters if not needs_parameter_name(plan, item)]
    parameters = sorted(item.parameter for item in adapters if needs_parameter_name(plan, item))
    rank, base = default_rank(plan), base or plan.model.name
    alphas = (item.alpha for item in plan.lora_modules if item.rank == rank and item.alpha)
    alpha = next(alphas, plan.lora.alpha)
    patterns = {
        field: {
            pattern(lora_name(plan, item)): value
            for item in adapters
            if (value := getattr(item, field)) not in (None, default)
        }
        for field, default in (("rank", rank), ("alpha", alpha))
    }
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": plan.model.revision if base == plan.model.name else None,
        "inference_mode": False,
        "r": rank,
        "lora_alpha": alpha,
        # LoRA on a parameter refuses dropout, and one value holds for all.
        "lora_dropout": 0.0,
        "bias": "none",
        # PEFT sets this per layer and warns; on a parameter it refuses it.
        "fan_in_fan_out": bool(targets) and all(item.form == "conv1d" for item in adapters),
        "target_modules": targets if targets or parameters else NO_TARGETS,
        "target_parameters": parameters or None,
        "modules_to_save": sorted({item.holder for item in plan.full}) or None,
        "rank_pattern": patterns["rank"],
        "alpha_pattern": patterns["alpha"],
        "ensure_weight_tying": ties_weights(plan),
    }


def lora_config(plan: Plan) -> LoraConfig:
    """The same as a `peft.LoraConfig`, for `get_peft_model` or the `peft_config` of a trainer.

    It names no base model: PEFT warns of any other name than that of the model in memory.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UsageError(
            "This needs PEFT, which is not installed.", hint="pip install 'hlscore[peft]'"
        ) from error
    fields = adapter_config(plan)
    del fields["peft_type"], fields["base_model_name_or_path"]
    return LoraConfig(**fields)
