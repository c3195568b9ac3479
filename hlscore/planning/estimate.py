"""What trainings of a model take in memory, before anything is scored."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from hlscore.errors import BudgetError
from hlscore.planning.budget import Budget, parse_budget
from hlscore.planning.memory import Choice, MemoryUse, extra_use, full_training, memory_use
from hlscore.records import Candidate, ModelDimensions, ParameterSize, tied_modules
from hlscore.settings import PlanSettings

Kind = Literal["full", "lora", "hybrid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A model without weights."""

    n_params: int  # tied ones counted once
    dimensions: ModelDimensions
    modules: tuple[Candidate, ...]  # every weight matrix, those that are no candidates too
    parameters: tuple[ParameterSize, ...]  # tied ones once

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Modules that may be trained."""
        return tuple(item for item in self.modules if not item.skipped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One way to train a model, and what it takes."""

    kind: Kind  # every parameter without PEFT, LoRA on every candidate, or a hybrid
    # Which modules a hybrid trains in full: the `smallest` or `largest` by the memory they add, or
    # a share of each (`proportional`); empty for the others.
    which: str
    full_modules: int | None  # candidates trained in full; `None` where that depends on which
    base_bits: int  # of each frozen weight of a linear layer
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
    """Estimate full fine-tuning, LoRA, and the hybrids of a budget.

    Which modules a hybrid trains in full is not known without scores. A budget of modules gives
    the hybrid with the cheapest modules and that with the dearest, between which every other
    lies; a budget of parameters gives one that trains the same share of every module in full,
    from which a plan of whole modules differs by little.

    Args:
        settings: Budget, rank, and what memory depends on. LoRA and hybrids come with the base
            of these and with a 4-bit base.
    """
    budget, memory, candidates = check_budget(settings.budget), settings.memory, shape.candidates
    sizes = [item.n_params for item in candidates]
    budget.check_one_fits(sizes)
    most = budget.limit(sizes)
    tied = tied_modules(shape.modules)
    full = [Choice(row=item, mode="full") for item in candidates]
    lora = [
        Choice(row=item, mode="frozen")  # LoRA on a tied weight merges wrongly
        if item.module in tied
        else Choice(row=item, mode="lora", rank=settings.rank)
        for item in candidates
    ]
    whole = Training(
        kind="full",
        which="",
        full_modules=None,
        base_bits=16,
        trained_params=shape.n_params,
        memory=full_training(shape, shape.parameters, memory),
    )
    found = [whole]
    for base in dict.fromkeys((memory, replace(memory, base_bits=4))):
        plain = Training(
            kind="lora",
            which="",
            full_modules=0,
            base_bits=base.base_bits,
            trained_params=sum(item.trained_params for item in lora),
            memory=memory_use(shape, lora, base),
        )
        found.append(plain)
        hybrid = replace(plain, kind="hybrid")
        if budget.unit == "parameters":
            trained = sum(item.trained_params for item in full)
            share = min(1.0, most / trained)
            every = memory_use(shape, full, base)
            uses = (field.name for field in fields(MemoryUse))
            found.append(
                replace(
                    hybrid,
                    which="proportional",
                    full_modules=None,
                    trained_params=_mixed(plain.trained_params, trained, share),
                    memory=MemoryUse(
                        *(
                            _mixed(getattr(plain.memory, use), getattr(every, use), share)
                            for use in uses
                        )
                    ),
                )
            )
            continue
        surcharges = [
            extra_use(one, base).total_bytes - extra_use(other, base).total_bytes
            for one, other in zip(full, lora, strict=True)
        ]
        for which in ("smallest", "largest"):
            order = sorted(range(len(full)), key=surcharges.__getitem__, reverse=which == "largest")
            choices = list(lora)
            for place in order[:most]:
                choices[place] = full[place]
            found.append(
                replace(
                    hybrid,
                    which=which,
                    full_modules=most,
                    trained_params=sum(item.trained_params for item in choices),
                    memory=memory_use(shape, choices, base),
                )
            )
    return tuple(found)


def _mixed(none: int, every: int, share: float) -> int:
    return round((1 - share) * none + share * every)
