"""A plan with the modes or ranks of some modules changed, and all its sums made again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.planning.budget import parse_budget
from hlscore.planning.memory import Choice, MemoryUse, Mode, extra_use, lora_params
from hlscore.planning.parts import budget_of, totals_of
from hlscore.settings import LARGEST_RANK


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What to do with a module instead."""

    module: str  # full name
    mode: Mode
    rank: int = 0  # LoRA rank; 0 unless the mode is `lora`

    def __str__(self) -> str:
        """The change in words."""
        mode = f"LoRA of rank {self.rank}" if self.mode == "lora" else self.mode
        return f"{self.module}: {mode}"

    @property
    def lock(self) -> str:
        """The change as a value of `--lock`."""
        return f"{self.module}={f'rank:{self.rank}' if self.mode == 'lora' else self.mode}"


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


def lora_instead(plan: Plan, item: PlanModule, rank: int, *, lower: bool) -> Change:
    """LoRA of a rank for a module that was to be trained in full, without spending more on it.

    Where the rank costs more, it is a lower one if that will do, or the module is frozen.
    """
    found = _largest_rank(plan, [item], rank, [item])
    if found == 0 or (found < rank and not lower):
        return Change(module=item.module, mode="frozen")
    return Change(module=item.module, mode="lora", rank=found)


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


def revise(plan: Plan, changes: Iterable[Change], notes: Sequence[str] = ()) -> Plan:
    """A plan with other modes or ranks for some modules, and further notes.

    Totals, memory and budget are added up again; value and gap of the solver stay those of the
    choice that it made, and the plan's coverage is unknown: a plan does not hold energies.
    """
    by_name = {change.module: change for change in changes}
    modules, before, after = [], MemoryUse(), MemoryUse()
    for item in plan.modules:
        change = by_name.get(item.module)
        if change is None:
            modules.append(item)
            continue
        rank = change.rank if change.mode == "lora" else 0
        choice = Choice(row=item, mode=change.mode, rank=rank)
        values = {
            "mode": change.mode,
            "rank": rank or None,
            "alpha": plan.lora.alpha_at(rank) if rank else None,
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
    asked, most = parse_budget(plan.budget.asked), plan.budget.trained_limit
    return plan.model_copy(
        update={
            "modules": modules,
            "totals": totals_of(modules, plan.lora.rank, plan.totals.model_params),
            "memory": used,
            "budget": budget_of(asked, plan.budget.counts, modules, used, trained_limit=most),
            "coverage": plan.coverage and plan.coverage.model_copy(update={"plan": None}),
            "notes": [*plan.notes, *notes],
        }
    )
