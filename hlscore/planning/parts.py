"""Parts of a plan that follow from its modules and objective; `hlscore check` makes them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from hlscore.artifacts.plan import (
    PlanBudget,
    PlanMemory,
    PlanModule,
    PlanRate,
    PlanRates,
    PlanStability,
    PlanTotals,
    significant,
)
from hlscore.planning.budget import Budget
from hlscore.planning.memory import lora_params

BORDERLINE = (0.1, 0.9)

# Learning rates of full fine-tuning: the defaults of TRL's trainers.
_FULL_RATES = {"sft": 2e-5, "dpo": 1e-6, "grpo": 1e-6}
_LORA_FACTOR = 10

Counted = Literal["full", "trained", "memory"]


def totals_of(modules: Sequence[PlanModule], rank: int, model_params: int) -> PlanTotals:
    """Counts of modules and parameters; `rank` is the plan's LoRA rank."""
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
    """What a budget allows and what a plan takes of it; arguments as in `PlanBudget`."""
    params = [item.params for item in modules]
    full = [item for item in modules if item.mode == "full"]
    spent = {
        "modules": len(full),
        "parameters": sum(
            item.trained_params for item in (modules if counts == "trained" else full)
        ),
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
        realized_parameter_share=significant(
            sum(item.params for item in full) / max(1, sum(params))
        ),
    )


def stability_of(modules: Sequence[PlanModule], *, clear: int | None) -> PlanStability:
    """How far the choice depends on the probe examples that were drawn."""
    known = [
        (share, item.mode) for item in modules if (share := item.selection_probability) is not None
    ]
    kept = [share for share, mode in known if mode == "full"]
    low, high = BORDERLINE
    return PlanStability(
        mean_reselection=significant(sum(kept) / len(kept)) if kept else None,
        borderline_modules=sum(low < share < high for share, _ in known) if known else None,
        clear_modules=clear,
    )


def suggested_rates(objective: str) -> PlanRates:
    """Learning rates for AdamW to start from, with their source.

    Args:
        objective: `sft`, `dpo` or `grpo`; `none` counts as `sft`.
    """
    objective = "sft" if objective == "none" else objective
    full = _FULL_RATES[objective]
    source = (
        f"starting point, not measured on this model: {full:g} is the default of TRL's "
        f"{objective.upper()}Trainer, and LoRA's best rate is about {_LORA_FACTOR} times that of "
        "full fine-tuning (Schulman et al., LoRA Without Regret, 2025); tune both"
    )
    lora = float(f"{_LORA_FACTOR * full:.6g}")
    return PlanRates(
        full=PlanRate(value=full, source=source), lora=PlanRate(value=lora, source=source)
    )
