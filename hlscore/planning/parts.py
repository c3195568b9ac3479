"""Parts of a plan that follow from its modules, and plans of which some modules are changed.

`hlscore check` makes the parts again; exports change a plan without its scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Literal

from hlscore.artifacts.plan import (
    Plan,
    PlanBudget,
    PlanMemory,
    PlanModule,
    PlanRate,
    PlanRates,
    PlanStability,
    PlanTotals,
    significant,
)
from hlscore.planning.budget import Budget, parse_budget
from hlscore.planning.memory import Choice, MemoryUse, extra_use, lora_params
from hlscore.settings import LARGEST_RANK

BORDERLINE = (0.1, 0.9)

# Learning rates of full fine-tuning: the defaults of TRL's trainers.
_FULL_RATES = {"sft": 2e-5, "dpo": 1e-6, "grpo": 1e-6}
_LORA_FACTOR = 10


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
    modules: Sequence[PlanModule],
    memory: PlanMemory,
    *,
    with_ranks: bool,
    method: str,
) -> PlanBudget:
    """What a budget allows and what a plan takes of it.

    Args:
        with_ranks: Whether each module has a rank of its own.
        method: As in `Plan`: a baseline may train more than the plan that it is compared with.
    """
    params = [item.params for item in modules]
    full = [item for item in modules if item.mode == "full"]
    counts: Literal["full", "trained", "memory"] = "full"
    spent = len(full)
    if budget.unit == "bytes":
        counts, spent = "memory", memory.total_bytes
    elif budget.unit == "parameters":
        counts = "trained" if with_ranks else "full"
        spent = sum(item.trained_params for item in (modules if with_ranks else full))
    return PlanBudget(
        asked=budget.text,
        unit=budget.unit,
        limit=budget.limit(params),
        counts=counts,
        spent=spent,
        trained_limit=budget.trained_limit(params) if with_ranks and method == "score" else None,
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


def choice_of(item: PlanModule) -> Choice:
    """What a plan does with a module."""
    return Choice(row=item, mode=item.mode, rank=item.rank or 0)


def default_rank(plan: Plan) -> int:
    """The rank to write once, which most adapters have; the others have entries of their own.

    Ties go to the plan's rank, then to the smallest. The plan's rank where nothing has LoRA.
    """
    counts = Counter(item.rank for item in plan.lora_modules if item.rank is not None)
    ranks = sorted(counts, key=lambda rank: (-counts[rank], rank != plan.lora.rank, rank))
    return ranks[0] if ranks else plan.lora.rank


def lora_instead(plan: Plan, item: PlanModule, rank: int, *, lower: bool) -> Choice:
    """LoRA of a rank for a module that was to be trained in full, without spending more on it.

    Where the rank costs more, it is a lower one if that will do, or the module is frozen.
    """
    found = _largest_rank(plan, [item], rank, [item])
    if found == 0 or (found < rank and not lower):
        return Choice(row=item, mode="frozen")
    return Choice(row=item, mode="lora", rank=found)


def common_rank(plan: Plan) -> int:
    """The largest rank, at least 1, that all adapters can have without spending more."""
    most = max(item.rank or 1 for item in plan.lora_modules)
    return max(1, _largest_rank(plan, plan.lora_modules, most, plan.lora_modules))


def equal_cost_rank(plan: Plan, asked: Plan) -> int:
    """The largest common rank of adapters at which a plan costs no more than the one asked for.

    At least the one rank that they have.
    """
    adapters = plan.lora_modules
    own = adapters[0].rank or 1
    most = max(own, *(item.max_rank for item in adapters))
    others = [item for item in plan.modules if item.mode != "lora"]
    found = _largest_rank(plan, adapters, min(most, LARGEST_RANK), asked.modules, others)
    return max(own, found)


def _largest_rank(
    plan: Plan,
    items: Sequence[PlanModule],
    most: int,
    within: Sequence[PlanModule],
    beside: Sequence[PlanModule] = (),
) -> int:
    """The largest rank up to `most` at which LoRA on modules fits, 0 for none.

    Parameters grow with the rank, so one division bounds it. Bytes need not: 8-bit moments of a
    tensor of 4096 numbers take less than 32-bit ones of a smaller tensor. But no rank adds more
    than the first one, so an excess says how many ranks below cannot fit either.

    Args:
        within: What the LoRA may cost, as much as these modules do,
        beside: less what these cost.
    """
    settings = plan.settings.memory

    def size(choices: Iterable[Choice]) -> int:
        return sum(extra_use(choice, settings).total_bytes for choice in choices)

    def lora(rank: int) -> int:
        return size(Choice(row=row, mode="lora", rank=rank) for row in items)

    params = sum(item.trained_params for item in within) - sum(
        item.trained_params for item in beside
    )
    room = size(map(choice_of, within)) - size(map(choice_of, beside))
    rank, first = min(most, params // sum(lora_params(row, 1) for row in items)), lora(1)
    while rank > 0 and (excess := lora(rank) - room) > 0:
        rank -= -(-excess // first)
    return max(rank, 0)


def revise(plan: Plan, choices: Iterable[Choice], notes: Sequence[str] = ()) -> Plan:
    """A plan with other modes or ranks for some modules, and further notes.

    Totals, memory and budget are added up again; value and gap of the solver stay those of the
    choice that it made, and the plan's coverage is unknown: a plan does not hold energies.
    """
    by_name = {choice.row.module: choice for choice in choices}
    modules, before, after = [], MemoryUse(), MemoryUse()
    for item in plan.modules:
        choice = by_name.get(item.module)
        if choice is None:
            modules.append(item)
            continue
        values = {
            "mode": choice.mode,
            "rank": choice.rank or None,
            "alpha": plan.lora.alpha_at(choice.rank) if choice.rank else None,
            "trained_params": choice.trained_params,
        }
        modules.append(item.model_copy(update=values))
        before += extra_use(choice_of(item), plan.settings.memory)
        after += extra_use(choice, plan.settings.memory)
    less = asdict(before)
    memory = {
        name: getattr(plan.memory, name) - less[name] + size for name, size in asdict(after).items()
    }
    used = plan.memory.model_copy(update={**memory, "total_bytes": sum(memory.values())})
    budget = budget_of(
        parse_budget(plan.budget.asked),
        modules,
        used,
        with_ranks=bool(plan.lora.ranks),
        method=plan.method,
    )
    return plan.model_copy(
        update={
            "modules": modules,
            "totals": totals_of(modules, plan.lora.rank, plan.totals.model_params),
            "memory": used,
            "budget": budget,
            "coverage": plan.coverage and plan.coverage.model_copy(update={"plan": None}),
            "notes": [*plan.notes, *notes],
        }
    )
