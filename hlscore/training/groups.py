"""Which parameters of a wrapped model a plan trains: the proof, and groups for an optimizer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import read_plan
from hlscore.errors import ModelError, UsageError
from hlscore.exporters.adapter_config import needs_parameter_name
from hlscore.inputs.hub import ADAPTER_PREFIX

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn

FULL, FULL_NO_DECAY, LORA = "full", "full_no_decay", "lora"


def param_groups(
    model: nn.Module,
    plan: Plan | str | Path,
    *,
    full_lr: float | None = None,
    lora_lr: float | None = None,
    weight_decay: float = 0.0,
    full_weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: full modules and adapters each at their own rate.

    `model` is what `apply` made of it, or a trainer with the plan's configuration. A learning rate
    of `None` is the plan's suggestion, `full_weight_decay=None` is `weight_decay`. Biases and norms
    have no weight decay.

    Returns:
        Groups named `full`, `full_no_decay` and `lora`, in this order and without empty ones,
        each with `params`, `lr`, `weight_decay` and `name`.
    """
    from peft import PeftModel

    plan = plan if isinstance(plan, Plan) else read_plan(plan)
    for name, rate in (("full_lr", full_lr), ("lora_lr", lora_lr)):
        if rate is not None and not (math.isfinite(rate) and rate >= 0):
            raise UsageError(f"{name} is {rate:g}.", hint="Use 0 or more.")
    if not isinstance(model, PeftModel):
        raise UsageError(
            f"This {type(model).__name__} has no plan applied.",
            hint="Use hlscore.apply on the model first.",
        )
    full = plan.learning_rates.full.value if full_lr is None else full_lr
    lora = plan.learning_rates.lora.value if lora_lr is None else lora_lr
    decay = weight_decay if full_weight_decay is None else full_weight_decay
    groups: dict[str, dict[str, Any]] = {
        name: {"params": [], "lr": rate, "weight_decay": decay, "name": name}
        for name, rate, decay in (
            (FULL, full, decay), (FULL_NO_DECAY, full, 0.0), (LORA, lora, weight_decay)
        )
    }  # fmt: skip
    by_module = expected_trainables(model, plan)
    modes = {name: item.mode for item in plan.modules for name in by_module[item.module]}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name not in modes:
            raise UsageError(
                f"'{name}' is trained, but the plan does not name it.",
                hint="Give the model as it was before other adapters or unfrozen weights.",
            )
        # Fused experts have biases with a row for each expert.
        decays = parameter.ndim > 1 and "bias" not in name.rpartition(".")[2]
        group = FULL_NO_DECAY if modes[name] == FULL and not decays else modes[name]
        groups[group]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def check_trainables(model: PeftModel, plan: Plan, *, adapter_name: str | None = None) -> None:
    """Make sure that the trainable parameters are exactly the plan's, and the ranks too."""
    by_module = expected_trainables(model, plan, adapter_name=adapter_name)
    planned = {name for names in by_module.values() for name in names}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    differing = {"are missing": planned - trained, "train unplanned": trained - planned}
    parts = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:3])}"
        for what, names in differing.items() if names
    ]  # fmt: skip
    if parts:
        raise ModelError(
            f"PEFT does not train exactly what the plan says. {'; '.join(parts)}.",
            hint="This version of PEFT may match names in another way; lock these modules to "
            "frozen.",
        )
    # Adapters of another rank than planned have the right names but another size.
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for item in plan.lora_modules:
        found = [sizes[name] for name in by_module[item.module]]
        # Parts of another process are empty where weights are sharded.
        if all(found) and sum(found) != item.trained_params:
            raise ModelError(
                f"The adapter on '{item.module}' has {sum(found):,} parameters, not the "
                f"{item.trained_params:,} of rank {item.rank}.",
                hint="This version of PEFT may match rank patterns in another way; lock the "
                "module to the plan's rank.",
            )


def expected_trainables(
    model: PeftModel, plan: Plan, *, adapter_name: str | None = None
) -> dict[str, tuple[str, ...]]:
    """Names of the parameters that should train each planned module, by the module's full name.

    Only names and modules are looked at, not `requires_grad`. Modules in full count with all
    that PEFT copies, weight and bias; fused experts in full share both tensors, their biases and
    norms; frozen modules have none. A parameter that the model lacks is named all the same, so
    that it can be missed; one that is tied goes by its first name.
    """
    adapter = adapter_name or str(model.active_adapter)
    modules = dict(model.named_modules())
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = {
        name: first[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    found = {}
    for item in plan.modules:
        holder, _, leaf = item.parameter.rpartition(".")
        place, names = f"{ADAPTER_PREFIX}{item.module}", []
        if item.mode == "full":
            place = f"{ADAPTER_PREFIX}{item.holder}.modules_to_save.{adapter}"
            copy = modules.get(place)
            # Experts may hold a norm; whatever is ranked by itself lies in no copy.
            leaves = [leaf] if copy is None else [name for name, _ in copy.named_parameters()]
            names = [f"{place}.{name}" for name in leaves]
        elif item.mode == "lora" and item.form == "embedding":
            names = [f"{place}.lora_embedding_{half}.{adapter}" for half in "AB"]
        elif item.mode == "lora":
            if needs_parameter_name(plan, item):
                # PEFT nests one wrapper per parameter of a module, the later ones outside.
                place = wrapper = f"{ADAPTER_PREFIX}{holder}"
                while wrapper in modules:
                    if getattr(modules[wrapper], "parameter_name", None) == leaf:
                        place = wrapper
                        break
                    wrapper += ".base_layer"
            names = [f"{place}.lora_{half}.{adapter}.weight" for half in "AB"]
        found[item.module] = tuple(every.get(name, name) for name in names)
    return found
