"""A plan with the modes or ranks of some modules changed, and all its sums made again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hlscore.artifacts.plan import (
    LARGEST_RANK,
    Plan,
    PlanBudget,
    PlanMemory,
    PlanModule,
    PlanTotals,
    significant,
)
from hlscore.planning.costs import lora_params
from hlscore.planning.memory import Choice, Mode, extra_bytes, memory_use
from hlscore.planning.options import option
from hlscore.records import Fingerprint, ModelDimensions, ModelIdentity, ModuleRow
from hlscore.settings import MemorySettings

# Only differences between two uses are taken, in which everything about the model cancels out.
_ANY_MODEL = ModelIdentity(
    model="",
    revision=None,
    architecture="",
    model_type="",
    n_params=0,
    dimensions=ModelDimensions(
        hidden_size=0,
        blocks=0,
        vocab_size=0,
        packable_params=0,
        packable_rows=0,
        block_widths=0,
    ),
    fingerprint=Fingerprint(structure="", weights=""),
)


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


def lora_size(item: PlanModule, rank: int) -> int:
    """Parameters of an adapter of a given rank on a module.

    Args:
        item: The module.
        rank: The rank; 0 for none.

    Returns:
        The parameters.
    """
    return lora_params(_row(item), rank)


def cost_of(plan: Plan, item: PlanModule, mode: Mode, rank: int = 0) -> tuple[int, int]:
    """What it costs to train a module in one way.

    Args:
        plan: The plan, whose memory settings count.
        item: The module.
        mode: `full`, `lora` or `frozen`.
        rank: LoRA rank; ignored unless the mode is `lora`.

    Returns:
        Parameters trained, and bytes on top of leaving the module frozen.
    """
    found = option(_row(item), mode, rank, memory_settings(plan))
    return found.params, found.bytes


def default_rank(plan: Plan) -> int:
    """The rank that most adapters have; ties go to the plan's rank, then to the smallest.

    Args:
        plan: The plan.

    Returns:
        The rank to write once; the others have entries of their own. The plan's rank where
        nothing has LoRA.
    """
    counts = Counter(item.rank for item in plan.lora_modules if item.rank is not None)
    ranks = sorted(counts, key=lambda rank: (-counts[rank], rank != plan.lora.rank, rank))
    return ranks[0] if ranks else plan.lora.rank


def memory_settings(plan: Plan) -> MemorySettings:
    """What the memory of a plan was computed for."""
    return plan.settings.memory


def lora_instead(plan: Plan, item: PlanModule, rank: int, *, lower: bool) -> Change:
    """LoRA for a module that was to be trained in full, without spending more on it.

    Args:
        plan: The plan that the module is in.
        item: The module.
        rank: The rank wanted.
        lower: Whether a lower rank will do where that one costs more than before.

    Returns:
        LoRA of the largest such rank; frozen where no rank costs as little.
    """
    found = _largest_rank(plan, [item], rank)
    if found == 0 or (found < rank and not lower):
        return Change(module=item.module, mode="frozen")
    return Change(module=item.module, mode="lora", rank=found)


def common_rank(plan: Plan) -> int:
    """The largest rank that all adapters can have without spending more.

    Args:
        plan: A plan with LoRA.

    Returns:
        The rank; at least 1, and no more than the largest that an adapter has.
    """
    most = max(item.rank or 1 for item in plan.lora_modules)
    return max(1, _largest_rank(plan, plan.lora_modules, most))


def equal_cost_rank(plan: Plan, asked: Plan) -> int:
    """The largest rank of all adapters at which a plan costs no more than another.

    Args:
        plan: A plan with LoRA of one rank.
        asked: The plan that it stands in for.

    Returns:
        The rank; that of the plan where no larger one fits.
    """
    settings, adapters = memory_settings(plan), plan.lora_modules
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
    settings, rows = memory_settings(plan), [_row(item) for item in items]

    def cost(rank: int) -> int:
        return sum(extra_bytes(Choice(row=row, mode="lora", rank=rank), settings) for row in rows)

    if params is None:
        params = sum(item.trained_params for item in items)
    if room is None:
        room = sum(extra_bytes(_choice(item), settings) for item in items)
    rank = min(most, params // sum(lora_params(row, 1) for row in rows))
    first = cost(1)
    while rank > 0 and (excess := cost(rank) - room) > 0:
        rank -= -(-excess // first)
    return max(rank, 0)


def revise(plan: Plan, changes: Iterable[Change], notes: Sequence[str] = ()) -> Plan:
    """Change what is done with some modules.

    Value and gap of the solver stay those of the choice that it made.

    Args:
        plan: The plan.
        changes: What to do with which module; the others stay as they are.
        notes: Remarks to add to the plan.

    Returns:
        A new plan with totals, shares, memory and spending made again.
    """
    by_name = {change.module: change for change in changes}
    modules = [_changed(plan, item, by_name) for item in plan.modules]
    totals = _totals(plan, modules)
    memory = _memory(plan, modules)
    return plan.model_copy(
        update={
            "modules": modules,
            "totals": totals,
            "memory": memory,
            "budget": _budget(plan, totals, memory),
            # Energies of modules are not in a plan.
            "coverage": plan.coverage and plan.coverage.model_copy(update={"plan": None}),
            "notes": [*plan.notes, *notes],
        }
    )


def _changed(plan: Plan, item: PlanModule, changes: Mapping[str, Change]) -> PlanModule:
    change = changes.get(item.module)
    if change is None:
        return item
    lora = change.mode == "lora"
    sizes = {"full": item.params, "lora": lora_size(item, change.rank), "frozen": 0}
    alpha = max(1, round(plan.lora.alpha * change.rank / plan.lora.rank))
    return item.model_copy(
        update={
            "mode": change.mode,
            "rank": change.rank if lora else None,
            "alpha": alpha if lora else None,
            "trained_params": sizes[change.mode],
        }
    )


def _totals(plan: Plan, modules: Sequence[PlanModule]) -> PlanTotals:
    count = {mode: sum(item.mode == mode for item in modules) for mode in ("full", "lora")}
    size = {
        mode: sum(item.trained_params for item in modules if item.mode == mode)
        for mode in ("full", "lora")
    }
    return plan.totals.model_copy(
        update={
            "full_modules": count["full"],
            "lora_modules": count["lora"],
            "frozen_modules": len(modules) - count["full"] - count["lora"],
            "full_params": size["full"],
            "lora_params": size["lora"],
            "trained_params": size["full"] + size["lora"],
        }
    )


def _memory(plan: Plan, modules: Sequence[PlanModule]) -> PlanMemory:
    if plan.memory.total_bytes == 0:  # a plan of version 1, which knows no memory
        return plan.memory
    settings = memory_settings(plan)
    before = asdict(memory_use(_ANY_MODEL, map(_choice, plan.modules), settings))
    after = asdict(memory_use(_ANY_MODEL, map(_choice, modules), settings))
    parts = {name: getattr(plan.memory, name) + after[name] - before[name] for name in after}
    return plan.memory.model_copy(update={**parts, "total_bytes": sum(parts.values())})


def _budget(plan: Plan, totals: PlanTotals, memory: PlanMemory) -> PlanBudget:
    budget = plan.budget
    spent: dict[str, int] = {
        "modules": totals.full_modules,
        "parameters": totals.trained_params if budget.counts == "trained" else totals.full_params,
        "bytes": memory.total_bytes,
    }
    return budget.model_copy(
        update={
            "spent": spent[budget.unit],
            "realized_module_share": _share(totals.full_modules, totals.candidate_modules),
            "realized_parameter_share": _share(totals.full_params, totals.candidate_params),
        }
    )


def _share(part: int, whole: int) -> float:
    return significant(part / whole) if whole else 0.0


def _choice(item: PlanModule) -> Choice:
    return Choice(row=_row(item), mode=item.mode, rank=item.rank or 0)


def _row(item: PlanModule) -> ModuleRow:
    """What costs depend on; scores play no part."""
    names = ("module", "parameter", "layer", "kind", "block", "matrices", "out_features",
             "in_features", "form", "storage")  # fmt: skip
    fields: dict[str, Any] = {name: getattr(item, name) for name in names}
    return ModuleRow(**fields, n_params=item.params, rank=None, matrices_reached=None)
