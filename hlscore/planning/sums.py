"""What the modules of a plan add up to; `hlscore check` adds up the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from hlscore.artifacts.plan import (
    PlanBudget,
    PlanMemory,
    PlanModule,
    PlanStability,
    PlanTotals,
    significant,
)
from hlscore.planning.budget import Budget
from hlscore.planning.memory import lora_params

BORDERLINE = (0.1, 0.9)

Counted = Literal["full", "trained", "memory"]


def totals_of(modules: Sequence[PlanModule], rank: int, model_params: int) -> PlanTotals:
    """Counts of modules and parameters.

    Args:
        rank: The plan's LoRA rank.
        model_params: All parameters of the model.
    """
    modes = [item.mode for item in modules]
    full, lora = (
        sum(item.trained_params for item in modules if item.mode == mode)
        for mode in ("full", "lora")
    )
    return PlanTotals(
        candidate_modules=len(modules),
        full_modules=modes.count("full"),
        lora_modules=modes.count("lora"),
        frozen_modules=modes.count("frozen"),
        candidate_params=sum(item.params for item in modules),
        full_params=full,
        lora_params=lora,
        trained_params=full + lora,
        plain_lora_params=sum(lora_params(item, rank) for item in modules),
        model_params=model_params,
    )


def budget_of(
    budget: Budget,
    counts: Counted,
    modules: Sequence[PlanModule],
    memory: PlanMemory,
    *,
    trained_limit: int | None,
) -> PlanBudget:
    """What a budget allows and what a plan takes of it.

    Args:
        counts: What counts towards the limit.
        trained_limit: Most parameters that may be trained beside a limit of modules.
    """
    params = [item.params for item in modules]
    full = [item.params for item in modules if item.mode == "full"]
    taken = modules if counts == "trained" else [item for item in modules if item.mode == "full"]
    spent = {
        "modules": len(full),
        "parameters": sum(item.trained_params for item in taken),
        "bytes": memory.total_bytes,
    }
    return PlanBudget(
        asked=budget.text,
        unit=budget.unit,
        limit=budget.limit(params),
        counts=counts,
        spent=spent[budget.unit],
        trained_limit=trained_limit,
        realized_module_share=significant(len(full) / max(1, len(params))),
        realized_parameter_share=significant(sum(full) / max(1, sum(params))),
    )


def stability_of(modules: Sequence[PlanModule], *, clear: int | None) -> PlanStability:
    """How far the choice depends on the probe examples that were drawn.

    Args:
        clear: Modules whose score lies above zero with 95 % confidence.
    """
    known = [item for item in modules if item.selection_probability is not None]
    shares = [item.selection_probability or 0.0 for item in known]
    kept = [item.selection_probability or 0.0 for item in known if item.mode == "full"]
    low, high = BORDERLINE
    return PlanStability(
        mean_reselection=significant(sum(kept) / len(kept)) if kept else None,
        borderline_modules=sum(low < share < high for share in shares) if shares else None,
        clear_modules=clear,
    )
