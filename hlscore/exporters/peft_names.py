"""The names by which PEFT finds what a plan trains."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.exporters.moe_names import needs_parameter_name

# The only names by which PEFT finds the weights that are tied to the input embedding.
TIEABLE = ("embed_tokens", "lm_head")

_KERNELS = frozenset({"out_proj"})
_SCAN = frozenset({"dt_proj"})

# Linear layers whose weight is read past an adapter, by model type: always (`dt_proj`, the router
# of LongCat), in training mode (Gemma 3n), or where fast kernels are installed. PEFT refuses some
# of these and trains others for nothing.
_READ_PAST = {
    "bamba": _KERNELS,
    "falcon_h1": _KERNELS,
    "falcon_mamba": _KERNELS | _SCAN | {"x_proj"},
    "gemma3n": frozenset({"correction_coefs"}),
    "gemma3n_text": frozenset({"correction_coefs"}),
    "granitemoehybrid": _KERNELS,
    "jamba": _SCAN,
    "longcat_flash": frozenset({"classifier"}),
    "mamba": _KERNELS | _SCAN | {"x_proj"},
    "mamba2": _KERNELS,
    "nemotron_h": _KERNELS,
    "zamba2": _KERNELS,
}


def is_read_past(plan: Plan, item: PlanModule) -> bool:
    """Tell whether a model reads a weight in a way that leaves LoRA on it without effect.

    Args:
        plan: The plan that the module is in.
        item: The module, whatever its mode.

    Returns:
        Whether LoRA would do nothing, at least on some machines; full fine-tuning works.
    """
    leaf = item.module.rpartition(".")[2]
    return leaf in _READ_PAST.get(plan.model.model_type, ())


def full_name(item: PlanModule) -> str:
    """Name of the module that PEFT copies to train a weight in full.

    Args:
        item: The module, whatever its mode.

    Returns:
        For fused experts the module that holds them, with both of its tensors; else the module.
    """
    return item.parameter.rpartition(".")[0] if item.form == "experts" else item.module


def lora_name(plan: Plan, item: PlanModule) -> str:
    """Name by which PEFT puts LoRA on a weight.

    Args:
        plan: The plan that the module is in.
        item: The module, whatever its mode.

    Returns:
        The parameter where only that is found (see `needs_parameter_name`), else the module.
    """
    return item.parameter if needs_parameter_name(plan, item) else item.module


def pattern(name: str) -> str:
    """A key of `rank_pattern` and `alpha_pattern` that matches one full name and no other.

    Args:
        name: The name by which PEFT finds the weight.

    Returns:
        The name, escaped and bound to its start: PEFT matches the ends of names otherwise.
    """
    return f"^{re.escape(name)}"


def never_packed(plan: Plan) -> Iterator[tuple[str, str]]:
    """Modules whose weight must not be quantized, as it cannot be trained then.

    Args:
        plan: The plan.

    Yields:
        Full name, and what is done with the module.
    """
    for item in plan.full:
        yield full_name(item), "trained in full"
    for item in plan.lora_modules:
        if item.form in ("linear", "conv1d") and needs_parameter_name(plan, item):
            yield item.module, "given LoRA by parameter"


def skip_modules(plan: Plan) -> list[str]:
    """Modules to keep out of 4-bit and 8-bit loading, so that the plan can be put on the model.

    Pass them as `BitsAndBytesConfig(llm_int8_skip_modules=...)`, also when the adapter is loaded
    again: a packed weight can neither be trained in full nor carry LoRA by parameter.

    Args:
        plan: The plan.

    Returns:
        Full names, the output head last.
    """
    heads = [item.module for item in plan.skipped if item.reason.startswith("output head")]
    names = sorted({name for name, _ in never_packed(plan)} - {"lm_head", *heads})
    return [*names, *dict.fromkeys([*heads, "lm_head"])]
