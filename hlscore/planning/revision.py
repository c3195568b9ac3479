"""A plan with the modes or ranks of some modules changed, and all its sums made again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from hlscore.artifacts.plan import Plan, PlanMemory, PlanModule
from hlscore.planning.budget import parse_budget
from hlscore.planning.memory import Choice, MemoryUse, Mode, extra_bytes, extra_use, lora_params
from hlscore.planning.sums import budget_of, totals_of
from hlscore.settings import LARGEST_RANK


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What to do with a module instead.

    Attributes:
        module: Full name.
        mode: `full`, `lora` or `frozen`.
        rank: LoRA rank; 0 unless the mode is `lora`.
    """

    module: str
    mode: Mode
    rank: int = 0

    def __str__(self) -> str:
        """The change in words."""
        mode = f"LoRA of rank {self.rank}" if self.mode == "lora" else self.mode
        return f"{self.module}: {mode}"

    @property
    def lock(self) -> str:
        """The change as a value of `--lock`."""
        return f"{self.module}={f'rank:{self.rank}' if self.mode == 'lora' else self.mode}"


def cost_of(plan: Plan, item: PlanModule, mode: Mode, rank: int = 0) -> tuple[int, int]:
    """What it costs to train a module in one way, under the plan's memory settings.

    Returns:
        Parameters trained, and bytes on top of leaving the module frozen.
    """
    choice = Choice(row=item, mode=mode, rank=rank)
    return choice.trained_params, extra_bytes(choice, plan.settings.memory)


def default_rank(plan: Plan) -> int:
    """The rank to write once, which most adapters have; the others have entries of their own.

    Ties go to the plan's rank, then to the smallest. The plan's rank where nothing has LoRA.
    """
    counts = Counter(item.rank for item in plan.lora_modules if item.rank is not None)
    ranks = sorted(counts, key=lambda rank: (-counts[rank], rank != plan.lora.rank, rank))
    return ranks[0] if ranks else plan.lora.rank


def lora_instead(plan: Plan, item: PlanModule, rank: int, *, lower: bool) -> Change:
    """LoRA for a module that was to be trained in full, without spending more on it.

    Args:
        plan: The plan that the module is in.
        item: The module.
        rank: The rank wanted.
        lower: Whether a lower rank will do where that one costs more than before; else the module
            is frozen, as it is where no rank costs as little.
    """
    found = _largest_rank(plan, [item], rank)
    if found == 0 or (found < rank and not lower):
        return Change(module=item.module, mode="frozen")
    return Change(module=item.module, mode="lora", rank=found)


def common_rank(plan: Plan) -> int:
    """The largest rank, at least 1, that all adapters can have without spending more."""
    most = max(item.rank or 1 for item in plan.lora_modules)
    return max(1, _largest_rank(plan, plan.lora_modules, most))


def equal_cost_rank(plan: Plan, asked: Plan) -> int:
    """The largest rank of all adapters at which a plan costs no more than the one asked for.

    At least the one rank that the adapters of the plan have.
    """
    settings, adapters = plan.settings.memory, plan.lora_modules
    others = [item for item in plan.modules if item.mode != "lora"]
    own = adapters[0].rank or 1
    most = max(own, *(min(item.out_features, item.in_features) for item in adapters))
    found = _largest_rank(
        plan,
        adapters,
        min(most, LARGEST_RANK),
        params=asked.totals.trained_params - sum(item.trained_params for item in others),
        room=sum(extra_bytes(_choice(item), settings) for item in asked.modules)
        - sum(extra_bytes(_choice(item), settings) for item in others),
    )
    return max(own, found)


def _largest_rank(
    plan: Plan,
    items: Sequence[PlanModule],
    most: int,
    *,
    params: int | None = None,
    room: int | None = None,
) -> int:
    """The largest rank up to `most` at which LoRA on modules costs no more than given; 0: none.

    Without `params` and `room` (bytes) it may cost what the modules do now.

    Parameters grow with the rank, so one division bounds it. Bytes need not: 8-bit moments of a
    tensor of 4096 numbers take less than 32-bit ones of a smaller tensor. But no rank adds more
    than the first one, so an excess says how many ranks below cannot fit either.
    """
    settings = plan.settings.memory

    def cost(rank: int) -> int:
        return sum(extra_bytes(Choice(row=row, mode="lora", rank=rank), settings) for row in items)

    if params is None:
        params = sum(item.trained_params for item in items)
    if room is None:
        room = sum(extra_bytes(_choice(item), settings) for item in items)
    rank = min(most, params // sum(lora_params(row, 1) for row in items))
    first = cost(1)
    while rank > 0 and (excess := cost(rank) - room) > 0:
        rank -= -(-excess // first)
    return max(rank, 0)


def revise(plan: Plan, changes: Iterable[Change], notes: Sequence[str] = ()) -> Plan:
    """A plan with other modes or ranks for some modules, and further notes.

    Totals, memory and budget are added up again; value and gap of the solver stay those of the
    choice that it made, and the plan's coverage is unknown: a plan does not hold energies.
    """
    by_name = {change.module: change for change in changes}
    modules = [
        _changed(plan, item, by_name[item.module]) if item.module in by_name else item
        for item in plan.modules
    ]
    memory = _memory(plan, modules)
    budget = budget_of(
        parse_budget(plan.budget.asked),
        plan.budget.counts,
        modules,
        memory,
        trained_limit=plan.budget.trained_limit,
    )
    return plan.model_copy(
        update={
            "modules": modules,
            "totals": totals_of(modules, plan.lora.rank, plan.totals.model_params),
            "memory": memory,
            "budget": budget,
            "coverage": plan.coverage and plan.coverage.model_copy(update={"plan": None}),
            "notes": [*plan.notes, *notes],
        }
    )


def _changed(plan: Plan, item: PlanModule, change: Change) -> PlanModule:
    lora = change.mode == "lora"
    values = {
        "mode": change.mode,
        "rank": change.rank if lora else None,
        "alpha": plan.lora.alpha_at(change.rank) if lora else None,
        "trained_params": cost_of(plan, item, change.mode, change.rank)[0],
    }
    return item.model_copy(update=values)


def _memory(plan: Plan, modules: Sequence[PlanModule]) -> PlanMemory:
    """The plan's memory with what its modules take taken out and the new modules put in."""
    parts = {field.name: getattr(plan.memory, field.name) for field in fields(MemoryUse)}
    for item, changed in zip(plan.modules, modules, strict=True):
        if changed is not item:
            before, after = (
                extra_use(_choice(one), plan.settings.memory) for one in (item, changed)
            )
            for name in parts:
                parts[name] += getattr(after, name) - getattr(before, name)
    return plan.memory.model_copy(update={**parts, "total_bytes": sum(parts.values())})


def _choice(item: PlanModule) -> Choice:
    return Choice(row=item, mode=item.mode, rank=item.rank or 0)
