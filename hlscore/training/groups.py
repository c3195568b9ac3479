"""Which parameters of a wrapped model a plan trains, and their groups for an optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.artifacts.plan_file import read_plan
from hlscore.errors import UsageError
from hlscore.exporters.adapter_config import full_name, needs_parameter_name

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn

FULL, FULL_NO_DECAY, LORA = "full", "full_no_decay", "lora"

_PREFIX = "base_model.model."


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

    Args:
        model: What `apply` made of the model, or a trainer with the plan's configuration.
        plan: The plan, or where its file is.
        full_lr: Learning rate of what is trained in full; `None` means the plan's suggestion.
        lora_lr: Learning rate of the adapters; `None` means the plan's suggestion.
        weight_decay: Weight decay of the adapters, and of full modules without one of their own.
        full_weight_decay: Weight decay of what is trained in full; biases and norms have none.

    Returns:
        Groups named `full`, `full_no_decay` and `lora`, in this order and without empty ones,
        each with `params`, `lr`, `weight_decay` and `name`.
    """
    from peft import PeftModel

    plan = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    for name, rate in (("full_lr", full_lr), ("lora_lr", lora_lr)):
        if rate is not None and not (math.isfinite(rate) and rate >= 0):
            raise UsageError(f"{name} is {rate:g}.", hint="Use 0 or more.")
    if not isinstance(model, PeftModel):
        raise UsageError(
            f"This {type(model).__name__} has no plan applied.",
            hint="Use hlscore.training.apply on the model first.",
        )
    full = plan.learning_rates.full.value if full_lr is None else full_lr
    lora = plan.learning_rates.lora.value if lora_lr is None else lora_lr
    decay = weight_decay if full_weight_decay is None else full_weight_decay
    found: dict[str, dict[str, Any]] = {
        name: {"params": [], "lr": rate, "weight_decay": decay, "name": name}
        for name, rate, decay in (
            (FULL, full, decay), (FULL_NO_DECAY, full, 0.0), (LORA, lora, weight_decay)
        )
    }  # fmt: skip
    planned = groups(model, plan)
    places = dict.fromkeys(planned["full"], FULL) | dict.fromkeys(planned["lora"], LORA)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name not in places:
            raise UsageError(
                f"'{name}' is trained, but the plan does not name it.",
                hint="Give the model as it was before other adapters or unfrozen weights.",
            )
        # Fused experts have biases with a row for each expert.
        decays = parameter.ndim > 1 and "bias" not in name.rpartition(".")[2]
        group = FULL_NO_DECAY if places[name] == FULL and not decays else places[name]
        found[group]["params"].append(parameter)
    return [group for group in found.values() if group["params"]]


def groups(
    model: PeftModel, plan: Plan, *, adapter_name: str | None = None
) -> dict[str, list[str]]:
    """Names of the parameters that a plan trains, by `full` and `lora`, each sorted."""
    by_module = expected_trainables(model, plan, adapter_name=adapter_name)
    found: dict[str, set[str]] = {"full": set(), "lora": set()}
    for item in plan.modules:
        if item.mode != "frozen":
            found[item.mode].update(by_module[item.module])
    return {mode: sorted(names) for mode, names in found.items()}


def expected_trainables(
    model: PeftModel, plan: Plan, *, adapter_name: str | None = None
) -> dict[str, tuple[str, ...]]:
    """The parameters that should train each planned module, by the module's full name.

    Only names and modules are looked at, not `requires_grad`. Modules in full count with all
    that PEFT copies, weight and bias; fused experts in full share both tensors, their biases and
    norms; frozen modules have none. A parameter that the model lacks is named all the same, so
    that it can be missed; one that is tied goes by its first name.

    Args:
        model: The model, wrapped for the plan.
        plan: The plan.
        adapter_name: Name of the adapter; `None` means the active one.

    Returns:
        Names as in `model.named_parameters()`.
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
        names: Iterator[str] = iter(())
        if item.mode == "full":
            names = _full_names(modules, item, adapter)
        elif item.mode == "lora":
            names = _lora_names(plan, modules, item, adapter)
        found[item.module] = tuple(every.get(name, name) for name in names)
    return found


def _full_names(modules: dict[str, nn.Module], item: PlanModule, adapter: str) -> Iterator[str]:
    place = f"{_PREFIX}{full_name(item)}.modules_to_save.{adapter}"
    copy = modules.get(place)
    if copy is None:
        yield f"{place}.{item.parameter.rpartition('.')[2]}"
    else:
        # Experts may hold a norm; whatever is ranked by itself lies in no copy.
        yield from (f"{place}.{leaf}" for leaf, _ in copy.named_parameters())


def _lora_names(
    plan: Plan, modules: dict[str, nn.Module], item: PlanModule, adapter: str
) -> Iterator[str]:
    place = f"{_PREFIX}{item.module}"
    if item.form == "embedding":
        for half in ("lora_embedding_A", "lora_embedding_B"):
            yield f"{place}.{half}.{adapter}"
        return
    if needs_parameter_name(plan, item):
        # PEFT nests one wrapper per parameter of a module, the later ones outside.
        holder, _, leaf = item.parameter.rpartition(".")
        place = wrapper = f"{_PREFIX}{holder}"
        while wrapper in modules:
            if getattr(modules[wrapper], "parameter_name", None) == leaf:
                place = wrapper
                break
            wrapper += ".base_layer"
    for half in ("lora_A", "lora_B"):
        yield f"{place}.{half}.{adapter}.weight"
