"""Which parameters of a wrapped model a plan trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.exporters.peft import full_name, needs_parameter_name

if TYPE_CHECKING:
    from peft import PeftModel

_PREFIX = "base_model.model."
_INNER = ".base_layer"


def groups(
    model: PeftModel, plan: Plan, *, adapter_name: str | None = None
) -> dict[str, list[str]]:
    """Name the parameters of a wrapped model that a plan trains, by how it trains them.

    Only names and modules are looked at, not `requires_grad`: the result is what should be
    trained. Modules in full count with all parameters of their own, weight and bias; fused
    experts with both tensors and their biases. A parameter that the model lacks is named all the
    same, so that it can be missed; one that is tied goes by its first name.

    Args:
        model: The model, wrapped for the plan.
        plan: The plan.
        adapter_name: Name of the adapter; `None` means the active one.

    Returns:
        Names as in `model.named_parameters()` by `full` and `lora`, each sorted by name.
    """
    by_module = expected_trainables(model, plan, adapter_name=adapter_name)
    found: dict[str, set[str]] = {"full": set(), "lora": set()}
    for item in plan.modules:
        if item.mode != "frozen":
            found[item.mode].update(by_module[item.module])
    return {mode: sorted(names) for mode, names in found.items()}


def expected_trainables(
    model: PeftModel, plan: Plan, *, adapter_name: str | None = None
) -> dict[str, tuple[str, ...]]:
    """Map every planned module to the parameters that train it in a wrapped model.

    Args:
        model: The model, wrapped for the plan.
        plan: The plan.
        adapter_name: Name of the adapter; `None` means the active one.

    Returns:
        Names as in `model.named_parameters()` by full name of the module; none for frozen
        modules. Tensors of fused experts that are trained in full share their names.
    """
    adapter = adapter_name or str(model.active_adapter)
    modules = dict(model.named_modules())
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = {
        name: first[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    finders = {"full": _full_names, "lora": lambda *args: _lora_names(plan, *args)}
    return {
        item.module: tuple(
            every.get(name, name)
            for name in (finders[item.mode](modules, item, adapter) if item.mode in finders else ())
        )
        for item in plan.modules
    }


def _full_names(modules: dict[str, nn.Module], item: PlanModule, adapter: str) -> Iterator[str]:
    place = f"{_PREFIX}{full_name(item)}.modules_to_save.{adapter}"
    copy = modules.get(place)
    leaves = (
        [item.parameter.rpartition(".")[2]]
        if copy is None
        else [leaf for leaf, _ in copy.named_parameters(recurse=False)]
    )
    yield from (f"{place}.{leaf}" for leaf in leaves)


def _lora_names(
    plan: Plan, modules: dict[str, nn.Module], item: PlanModule, adapter: str
) -> Iterator[str]:
    if item.form == "embedding":
        for half in ("lora_embedding_A", "lora_embedding_B"):
            yield f"{_PREFIX}{item.module}.{half}.{adapter}"
        return
    place = f"{_PREFIX}{item.module}"
    if needs_parameter_name(plan, item):
        place = _wrapper_of(modules, item.parameter)
    for half in ("lora_A", "lora_B"):
        yield f"{place}.{half}.{adapter}.weight"


def _wrapper_of(modules: dict[str, nn.Module], parameter: str) -> str:
    """PEFT nests one wrapper per parameter of a module, the later ones outside."""
    holder, _, leaf = parameter.rpartition(".")
    place = start = f"{_PREFIX}{holder}"
    while place in modules:
        if getattr(modules[place], "parameter_name", None) == leaf:
            return place
        place += _INNER
    return start
