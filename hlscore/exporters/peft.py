"""A whole plan as the configuration of one PEFT adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hlscore.artifacts.plan import Plan
from hlscore.errors import UsageError
from hlscore.exporters.formats import Exporter, ExportSettings, Writer, text_file
from hlscore.exporters.limits import Limits
from hlscore.exporters.moe_names import needs_parameter_name
from hlscore.exporters.peft_names import full_name, lora_name, pattern, skip_modules
from hlscore.exporters.revision import default_rank
from hlscore.reasons import tied_modules

if TYPE_CHECKING:
    from peft import LoraConfig

PEFT_LIMITS = Limits(trainer="PEFT")

# With no target PEFT raises, and without the field it would choose targets of its own.
NO_TARGETS = "dummy-target-modules"

_MISSING = "pip install 'hlscore[peft]'"


def default_alpha(plan: Plan) -> int:
    """Alpha at the default rank.

    Args:
        plan: The plan.

    Returns:
        The alpha to write once.
    """
    rank = default_rank(plan)
    found = (item.alpha for item in plan.lora_modules if item.rank == rank)
    return next((alpha for alpha in found if alpha is not None), plan.lora.alpha)


def target_modules(plan: Plan) -> list[str]:
    """Full names of the modules with LoRA that PEFT finds by module, sorted.

    Args:
        plan: The plan.

    Returns:
        The names; empty where every adapter sits on a parameter, or there is none.
    """
    return sorted(item.module for item in plan.lora_modules if not needs_parameter_name(plan, item))


def target_parameters(plan: Plan) -> list[str]:
    """Full names of the weights with LoRA that PEFT finds only by parameter, sorted.

    Args:
        plan: The plan.

    Returns:
        Routers, fused experts, and the linear layers whose names PEFT would rewrite.
    """
    return sorted(item.parameter for item in plan.lora_modules if needs_parameter_name(plan, item))


def modules_to_save(plan: Plan) -> list[str]:
    """Full names of the modules that PEFT trains in full, sorted.

    Args:
        plan: The plan.

    Returns:
        The names, with fused experts by the module that holds both of their tensors.
    """
    return sorted({full_name(item) for item in plan.full})


def rank_pattern(plan: Plan) -> dict[str, int]:
    """Ranks that differ from the default rank.

    Args:
        plan: The plan.

    Returns:
        Ranks by regular expression; each matches one weight, so their order is of no matter.
    """
    default = default_rank(plan)
    return {
        pattern(lora_name(plan, item)): item.rank
        for item in sorted(plan.lora_modules, key=lambda item: item.module)
        if item.rank is not None and item.rank != default
    }


def alpha_pattern(plan: Plan) -> dict[str, int]:
    """Alphas that differ from the default alpha.

    Args:
        plan: The plan.

    Returns:
        Alphas by regular expression.
    """
    default = default_alpha(plan)
    return {
        pattern(lora_name(plan, item)): item.alpha
        for item in sorted(plan.lora_modules, key=lambda item: item.module)
        if item.alpha is not None and item.alpha != default
    }


def ties_weights(plan: Plan) -> bool:
    """Tell whether PEFT has to keep a tied embedding tied while it is trained in full."""
    tied = tied_modules(plan.skipped)
    return any(item.module in tied for item in plan.full)


def adapter_config(plan: Plan, model: str | None = None) -> dict[str, object]:
    """The fields of an `adapter_config.json` that carries the whole plan.

    Every name is a full one and every pattern matches one weight: PEFT matches the ends of names,
    and would train more than the plan otherwise.

    Args:
        plan: A plan within PEFT's limits (`check_limits`).
        model: Hub id or directory of the base model; `None` means the one that the plan names.

    Returns:
        Plain data, with lists sorted.
    """
    targets, parameters = target_modules(plan), target_parameters(plan)
    other_base = model is not None and model != plan.model.name
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model or plan.model.name,
        "revision": None if other_base else plan.model.revision,
        "inference_mode": False,
        "r": default_rank(plan),
        "lora_alpha": default_alpha(plan),
        # LoRA on a parameter refuses dropout, and one value holds for all.
        "lora_dropout": 0.0,
        "bias": "none",
        # PEFT sets this per layer and warns; on a parameter it refuses it.
        "fan_in_fan_out": bool(targets)
        and all(item.form == "conv1d" for item in plan.lora_modules),
        "target_modules": targets if targets or parameters else NO_TARGETS,
        "target_parameters": parameters or None,
        "modules_to_save": modules_to_save(plan) or None,
        "rank_pattern": rank_pattern(plan),
        "alpha_pattern": alpha_pattern(plan),
        "ensure_weight_tying": ties_weights(plan),
    }


def lora_config(plan: Plan, model: str | None = None) -> LoraConfig:
    """The same as a `peft.LoraConfig`.

    Args:
        plan: A plan within PEFT's limits (`check_limits`).
        model: Hub id or directory of the base model; `None` means the one that the plan names.

    Returns:
        A configuration for `peft.get_peft_model`, or for the `peft_config` of a trainer.

    Raises:
        UsageError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UsageError("This needs PEFT, which is not installed.", hint=_MISSING) from error
    fields = {
        key: value for key, value in adapter_config(plan, model).items() if key != "peft_type"
    }
    return LoraConfig(**fields)  # type: ignore[arg-type]


def config_text(config: Mapping[str, object]) -> str:
    """Write an adapter's configuration as JSON, the same bytes for the same plan.

    Args:
        config: Fields, from `adapter_config`.

    Returns:
        Indented JSON with sorted keys.
    """
    return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _files(plan: Plan, settings: ExportSettings) -> dict[str, Writer]:
    config = adapter_config(plan, settings.base(plan))
    return {"adapter_config.json": text_file(config_text(config))}


def _notes(plan: Plan, settings: ExportSettings) -> tuple[str, ...]:
    """What has to be set besides, for every trainer that runs PEFT."""
    del settings
    found = []
    if plan.full and plan.memory.master == "fp32":
        found.append(
            "PEFT leaves full copies of a 16-bit model in 16 bits, where small updates are lost: "
            "load the base model in float32, or wrap it with hlscore.training.apply."
        )
    if plan.memory.base_bits != 16:
        found.append(
            "Load the quantized base model with llm_int8_skip_modules="
            f"{json.dumps(skip_modules(plan))}, also when the adapter is loaded again."
        )
    if plan.full:
        found.append("Merge before serving: vLLM rejects adapters with modules in full.")
    return tuple(found)


EXPORTER = Exporter(
    name="peft",
    summary="adapter_config.json: the whole plan, for PEFT and whatever takes a LoraConfig",
    limits=PEFT_LIMITS,
    files=_files,
    folder=True,
    usage="get_peft_model(model, LoraConfig.from_pretrained('{out}'))",
    notes=_notes,
    rates=False,
)
