"""What trainings of a model take in memory, before anything is scored."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Literal

from hlscore.errors import BudgetError
from hlscore.planning.budget import Budget, parse_budget
from hlscore.planning.memory import Choice, MemoryUse, extra_use, full_training, memory_use
from hlscore.records import ModelShape, tied_modules
from hlscore.settings import MemorySettings, PlanSettings

Kind = Literal["full", "lora", "hybrid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One way to train a model, and what it takes."""

    kind: Kind  # every parameter without PEFT, LoRA on every candidate, or a hybrid
    # Which modules a hybrid trains in full: the `smallest` or `largest` by the memory they add, or
    # a share of each (`proportional`); empty for the others.
    which: str = ""
    full_modules: int | None = None  # candidates in full; `None` where that depends on which
    base_bits: int = 16  # of each frozen weight of a linear layer
    trained_params: int
    memory: MemoryUse


def check_budget(budget: str) -> Budget:
    """Read the budget of an estimate, before a model is built."""
    found = parse_budget(budget)
    if found.unit == "bytes":
        raise BudgetError(
            f"The budget '{budget}' is training memory, which is what estimate tells.",
            hint=f"Use --gpu {budget} to see what fits, and --budget 0.1, 0.1p or 500M.",
        )
    return found


def estimate(shape: ModelShape, settings: PlanSettings) -> tuple[Training, ...]:
    """Estimate full fine-tuning, LoRA, and the hybrids of a budget; these also with a 4-bit base.

    Which modules a hybrid trains in full is not known without scores. A budget of modules gives
    the hybrid with the cheapest modules and that with the dearest, between which every other
    lies; a budget of parameters gives one that trains the same share of every module in full,
    from which a plan of whole modules differs by little.
    """
    budget, memory, candidates = check_budget(settings.budget), settings.memory, shape.candidates
    sizes = [item.n_params for item in candidates]
    budget.check_one_fits(sizes)
    most, tied = budget.limit(sizes), tied_modules(shape.modules)
    full = [Choice(row=item, mode="full") for item in candidates]
    lora = [
        Choice(row=item, mode="frozen")  # LoRA on a tied weight merges wrongly
        if item.module in tied
        else Choice(row=item, mode="lora", rank=settings.rank)
        for item in candidates
    ]
    use = full_training(shape, shape.parameters, memory)
    found = [Training(kind="full", trained_params=shape.n_params, memory=use)]

    def training(choices: list[Choice], base: MemorySettings, which: str = "") -> Training:
        return Training(
            kind="hybrid" if which else "lora",
            which=which,
            full_modules=sum(item.mode == "full" for item in choices),
            base_bits=base.base_bits,
            trained_params=sum(item.trained_params for item in choices),
            memory=memory_use(shape, choices, base),
        )

    for base in dict.fromkeys((memory, replace(memory, base_bits=4))):
        found.append(training(lora, base))
        if budget.unit == "parameters":
            share, none = min(1.0, most / sum(sizes)), found[-1]
            every = training(full, base, "proportional")
            trained, *uses = (
                round((1 - share) * least + share * whole)
                for least, whole in zip(
                    (none.trained_params, *astuple(none.memory)),
                    (every.trained_params, *astuple(every.memory)),
                    strict=True,
                )
            )
            use = MemoryUse(*uses)
            found.append(replace(every, full_modules=None, trained_params=trained, memory=use))
            continue
        surcharges = [
            extra_use(one, base).total_bytes - extra_use(other, base).total_bytes
            for one, other in zip(full, lora, strict=True)
        ]
        for which in ("smallest", "largest"):
            order = sorted(range(len(full)), key=surcharges.__getitem__, reverse=which == "largest")
            chosen = set(order[:most])
            choices = [full[at] if at in chosen else lora[at] for at in range(len(full))]
            found.append(training(choices, base, which))
    return tuple(found)
