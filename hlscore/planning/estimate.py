"""What trainings of a model take in memory, before anything is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from hlscore.errors import BudgetError
from hlscore.planning.budget import Budget, parse_budget
from hlscore.planning.memory import (
    Choice,
    MemoryUse,
    extra_bytes,
    full_training,
    memory_use,
)
from hlscore.reasons import tied_modules
from hlscore.records import Candidate, ModelDimensions, ParameterSize
from hlscore.settings import BaseBits, MemorySettings, PlanSettings

Kind = Literal["full", "lora", "hybrid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A model without weights.

    Attributes:
        n_params: All parameters, tied ones counted once.
        dimensions: Sizes that the memory of a training depends on.
        modules: Every weight matrix, those that are no candidates too.
        parameters: Every parameter, tied ones once.
    """

    n_params: int
    dimensions: ModelDimensions
    modules: tuple[Candidate, ...]
    parameters: tuple[ParameterSize, ...]

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Modules that may be trained."""
        return tuple(item for item in self.modules if not item.skipped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One way to train a model, and what it takes.

    Attributes:
        kind: `full` (every parameter, without PEFT), `lora` (on every candidate) or `hybrid`.
        which: Which modules a hybrid trains in full: the `smallest` or `largest` by the memory
            they add, or a share of each (`proportional`); empty for the others.
        full_modules: Candidates trained in full; `None` where that depends on which.
        base_bits: Bits of each frozen weight of a linear layer.
        trained_params: Parameters that are trained.
        memory: The memory by use.
    """

    kind: Kind
    which: str
    full_modules: int | None
    base_bits: int
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
    budget, memory = check_budget(settings.budget), settings.memory
    sizes = [item.n_params for item in shape.candidates]
    budget.check_one_fits(sizes)
    most = budget.limit(sizes)
    found = [
        Training(
            kind="full",
            which="",
            full_modules=None,
            base_bits=16,
            trained_params=shape.n_params,
            memory=full_training(shape, shape.parameters, memory),
        )
    ]
    bases: tuple[BaseBits, ...] = (memory.base_bits, 4)
    for bits in dict.fromkeys(bases):
        arms = _Arms(
            shape=shape,
            rank=settings.rank,
            settings=replace(memory, base_bits=bits),
            tied=tied_modules(shape.modules),
        )
        found.append(arms.lora())
        if budget.unit == "modules":
            found += [arms.of_modules(most, which) for which in ("smallest", "largest")]
        else:
            found.append(arms.of_parameters(most))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arms:
    """Trainings of one model with PEFT on one base."""

    shape: ModelShape
    rank: int
    settings: MemorySettings
    tied: frozenset[str]

    def lora(self) -> Training:
        return self._training("lora", "", self._choices(lambda _: False), 0)

    def of_modules(self, number: int, which: str) -> Training:
        """Train the `number` smallest or largest candidates in full."""
        ordered = sorted(self.shape.candidates, key=self._surcharge, reverse=which == "largest")
        chosen = {item.module for item in ordered[:number]}
        choices = self._choices(lambda item: item.module in chosen)
        return self._training("hybrid", which, choices, number)

    def of_parameters(self, number: int) -> Training:
        """Train a share of every candidate in full, `number` parameters together."""
        every = self._training("hybrid", "", self._choices(lambda _: True), None)
        share = min(1.0, number / every.trained_params)
        none = self.lora()
        return replace(
            every,
            which="proportional",
            trained_params=_mixed(none.trained_params, every.trained_params, share),
            memory=_mixed_memory(none.memory, every.memory, share),
        )

    def _choices(self, in_full: Callable[[Candidate], bool]) -> tuple[Choice, ...]:
        return tuple(
            Choice(row=item, mode="full") if in_full(item) else self._otherwise(item)
            for item in self.shape.candidates
        )

    def _otherwise(self, item: Candidate) -> Choice:
        """What is done with a module that is not trained in full."""
        if item.module in self.tied:
            return Choice(row=item, mode="frozen")  # LoRA on a tied weight merges wrongly
        return Choice(row=item, mode="lora", rank=self.rank)

    def _surcharge(self, item: Candidate) -> int:
        """Bytes that a module takes in full on top of what it takes otherwise."""
        full = extra_bytes(Choice(row=item, mode="full"), self.settings)
        return full - extra_bytes(self._otherwise(item), self.settings)

    def _training(
        self, kind: Kind, which: str, choices: Sequence[Choice], full_modules: int | None
    ) -> Training:
        return Training(
            kind=kind,
            which=which,
            full_modules=full_modules,
            base_bits=self.settings.base_bits,
            trained_params=sum(item.trained_params for item in choices),
            memory=memory_use(self.shape, choices, self.settings),
        )


def _mixed(none: int, every: int, share: float) -> int:
    return round((1 - share) * none + share * every)


def _mixed_memory(none: MemoryUse, every: MemoryUse, share: float) -> MemoryUse:
    names = [field.name for field in fields(MemoryUse)]
    return MemoryUse(
        **{name: _mixed(getattr(none, name), getattr(every, name), share) for name in names}
    )
