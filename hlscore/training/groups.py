"""Parameter groups of an optimizer: full modules and adapters each at a rate of their own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import read_plan
from hlscore.errors import UsageError
from hlscore.training.trainables import groups

if TYPE_CHECKING:
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
    """Sort the trained parameters of an applied model into groups for an optimizer.

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

    Raises:
        UsageError: The model was not applied, something is trained that the plan does not name,
            or a rate is below 0.
        ArtifactError: There is no plan at that place.
    """
    plan = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    for name, rate in (("full_lr", full_lr), ("lora_lr", lora_lr)):
        if rate is not None and not (math.isfinite(rate) and rate >= 0):
            raise UsageError(f"{name} is {rate:g}.", hint="Use 0 or more.")
    rates = plan.learning_rates
    full = (rates.full.value if full_lr is None else full_lr,
            weight_decay if full_weight_decay is None else full_weight_decay)  # fmt: skip
    settings = {
        FULL: full,
        FULL_NO_DECAY: (full[0], 0.0),
        LORA: (rates.lora.value if lora_lr is None else lora_lr, weight_decay),
    }
    sorted_parameters = _sorted_parameters(model, plan)
    return [
        {"params": sorted_parameters[name], "lr": rate, "weight_decay": decay, "name": name}
        for name, (rate, decay) in settings.items()
        if sorted_parameters[name]
    ]


def _sorted_parameters(model: nn.Module, plan: Plan) -> dict[str, list[nn.Parameter]]:
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise UsageError(
            f"A {type(model).__name__} trains no plan.",
            hint="Use hlscore.training.apply on the model first.",
        )
    planned = groups(model, plan)
    places = dict.fromkeys(planned["full"], FULL) | dict.fromkeys(planned["lora"], LORA)
    found: dict[str, list[nn.Parameter]] = {FULL: [], FULL_NO_DECAY: [], LORA: []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name not in places:
            raise UsageError(
                f"'{name}' is trained, but the plan does not name it.",
                hint="Give the model as it was before other adapters or unfrozen weights.",
            )
        place = places[name]
        spared = place == FULL and not _decays(name, parameter)
        found[FULL_NO_DECAY if spared else place].append(parameter)
    return found


def _decays(name: str, parameter: nn.Parameter) -> bool:
    # Fused experts have biases with a row for each expert.
    return parameter.ndim > 1 and "bias" not in name.rpartition(".")[2]
