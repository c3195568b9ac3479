"""The question that an allocation answers, and the shape of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hlscore.errors import BudgetError
from hlscore.planning.budget import Budget
from hlscore.planning.locks import Lock
from hlscore.planning.memory import activation_bytes, base_bytes
from hlscore.planning.options import Option
from hlscore.records import ModelIdentity, ModuleRow
from hlscore.scores.registry import Score
from hlscore.settings import MemorySettings, PlanSettings

Counts = Literal["full", "trained", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything that an allocation depends on.

    Attributes:
        model: Which model.
        rows: Its candidates, the best first by the score.
        seed: Seed of the run, for random draws.
        run_rank: LoRA rank that the stored resamples belong to.
        of_updates: Whether the scores are of finished trainings.
        score: The score that decides.
        budget: The budget.
        locks: Lock of each locked module, by name.
        tied: Modules whose weight is shared.
        settings: Rank, ranks, memory.
    """

    model: ModelIdentity
    rows: tuple[ModuleRow, ...]
    seed: int
    run_rank: int
    of_updates: bool
    score: Score
    budget: Budget
    locks: Mapping[str, Lock]
    tied: frozenset[str]
    settings: PlanSettings

    @property
    def params(self) -> list[int]:
        """Parameters of each candidate."""
        return [row.n_params for row in self.rows]


def free_bytes(model: ModelIdentity, budget: Budget, memory: MemorySettings) -> int:
    """Bytes that trained modules may take, under a budget of memory."""
    free = (budget.amount or 0) - fixed_bytes(model, memory)
    if free <= 0:
        raise too_small(model, budget, memory)
    return free


def fixed_bytes(model: ModelIdentity, memory: MemorySettings) -> int:
    """Bytes of the frozen model and of the activations, whatever is trained."""
    return base_bytes(model, memory) + activation_bytes(model.dimensions, memory)


def too_small(
    model: ModelIdentity, budget: Budget, memory: MemorySettings, trained: int = 0
) -> BudgetError:
    """The error for a memory budget into which not even the least fits.

    Returns:
        The error, with what each part takes.
    """
    base = base_bytes(model, memory)
    activations = activation_bytes(model.dimensions, memory)
    parts = f"the frozen weights take {_gib(base)}, activations about {_gib(activations)}"
    if trained:
        parts += f", what has to be trained at least {_gib(trained)}"
    return BudgetError(
        f"A training memory of {budget.text} is too small for {model.model}: {parts}.",
        hint="Give more memory, --base 4, another --optimizer, a lower --rank or a shorter "
        "--train-length.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Picks:
    """The answer: one option per candidate.

    Attributes:
        options: What is done with each row, in order.
        limit: The most that the budget allows, in its unit.
        spent: What the choice takes of it.
        counts: What counts towards the limit.
        solver: `sorted`, `HiGHS`, or `none` where there was nothing to choose.
        value: Sum of the selected values.
        bound: Upper bound of that sum over all choices that fit.
        probability: Share of resamples in which each row is trained in full; `None` where that
            is unknown.
    """

    options: tuple[Option, ...]
    limit: int
    spent: int
    counts: Counts
    solver: str
    value: float
    bound: float
    probability: tuple[float | None, ...]

    @property
    def gap(self) -> float:
        """How far the value may be from the best one, relative to the larger of the two."""
        scale = max(abs(self.bound), abs(self.value))
        return max(0.0, self.bound - self.value) / scale if scale > 0 else 0.0


def counts_of(problem: Problem) -> Counts:
    """What counts towards the limit: memory, all that is trained, or what is in full."""
    if problem.budget.unit == "bytes":
        return "memory"
    trained = problem.budget.unit == "parameters" and problem.settings.ranks
    return "trained" if trained else "full"


def spent_of(problem: Problem, options: Sequence[Option]) -> int:
    """What a choice takes of the budget, in its unit.

    Args:
        options: What is done with each module.

    Returns:
        Modules in full, parameters in full, all trained parameters, or bytes in all.
    """
    counts = counts_of(problem)
    if counts == "memory":
        fixed = fixed_bytes(problem.model, problem.settings.memory)
        return fixed + sum(item.bytes for item in options)
    if problem.budget.unit == "modules":
        return sum(item.mode == "full" for item in options)
    return sum(item.params for item in options if item.mode == "full" or counts == "trained")


def _gib(size: int) -> str:
    return f"{size / 1024**3:.3g} GiB"
