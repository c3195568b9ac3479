"""The arms of a validation: the plan, and the plans that it is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.errors import UsageError
from hlscore.planning.baselines import by_size, nearest_rank
from hlscore.planning.memory import Mode
from hlscore.planning.problem import holder_of
from hlscore.planning.revision import Change, revise
from hlscore.planning.uniform import fill
from hlscore.records import Matrix, tied_modules
from hlscore.scores.rows import stratified_scores

Row = TypeVar("Row", bound=Matrix)

LORA, MATCHED, RANDOM, LARGEST = "lora", "matched", "random", "largest"
PLAN, FULL = "plan", "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to train: the plan of each seed; only those of `random` differ."""

    name: str
    plans: Mapping[int, Plan]

    @property
    def rates(self) -> tuple[bool, bool]:
        """Whether it trains modules in full, and whether it trains adapters."""
        plans = self.plans.values()
        full = any(plan.totals.full_modules for plan in plans)
        return full, any(plan.totals.lora_modules for plan in plans)

    @property
    def trained_params(self) -> float:
        """Trained parameters, the mean over seeds."""
        return sum(plan.totals.trained_params for plan in self.plans.values()) / len(self.plans)

    @property
    def memory_bytes(self) -> int:
        """Predicted training memory of its first plan."""
        return next(iter(self.plans.values())).memory.total_bytes


def make_arms(plan: Plan, seeds: tuple[int, ...], *, full: bool) -> tuple[Arm, ...]:
    """The plan and the baselines, each with a plan for each seed.

    `lora` has the plan's rank on every candidate, `matched` the one rank whose parameters come
    nearest to what the plan trains. `random` trains modules in full in the order of a control that
    is stratified by kind and size, as long as they fit into what the plan trains in full; of a plan
    with a rank for each module it deals the ranks anew among modules of one shape. `largest` trains
    the largest modules in full, as many parameters as the plan; plans of ranks have no such
    baseline.
    """
    if not plan.totals.full_modules and not plan.lora.ranks:
        raise UsageError(
            "The plan trains no module in full: there is nothing to try out.",
            hint="Make one with a larger budget: `hlscore plan scores.parquet --budget 0.1`.",
        )
    rows = [item for item in plan.modules if not item.unreached]
    lora = _uniform(plan, "lora", plan.lora.rank)
    rank = nearest_rank(plan.totals.trained_params, lora.lora_modules)
    arms = {
        LORA: dict.fromkeys(seeds, lora),
        MATCHED: dict.fromkeys(seeds, _uniform(plan, "lora", rank)),
    }
    if plan.lora.ranks:
        arms[RANDOM] = {seed: _dealt(plan, seed) for seed in seeds}
    else:
        budget = plan.totals.full_params

        def with_full(modules: Iterable[str]) -> Plan:
            return revise(lora, [Change(module=name, mode="full") for name in modules])

        arms[RANDOM] = {
            seed: with_full(drawn_modules(rows, seed=seed, params=budget)) for seed in seeds
        }
        largest = with_full(_filling(rows, by_size(rows, plan.provenance.seed), budget))
        arms[LARGEST] = dict.fromkeys(seeds, largest)
    arms[PLAN] = dict.fromkeys(seeds, plan)
    if full:
        arms[FULL] = dict.fromkeys(seeds, _uniform(plan, "full", plan.lora.rank))
    return tuple(Arm(name=name, plans=plans) for name, plans in arms.items())


def drawn_modules(rows: Sequence[Matrix], *, seed: int, params: int) -> list[str]:
    """Names of modules drawn at random, spread over kinds and sizes, of at most `params` together.

    The rest of `params` is smaller than any module that was not drawn.
    """
    return _filling(rows, stratified_scores(rows, seed=seed), params)


def _filling(rows: Sequence[Matrix], scores: Mapping[str, float], params: int) -> list[str]:
    """Names of the modules that fit into so many parameters, the highest scores first."""
    units = sorted(_units(rows), key=lambda unit: -max(scores[row.module] for row in unit))
    costs = [sum(row.n_params for row in unit) for unit in units]
    return [row.module for place in fill(range(len(units)), costs, params) for row in units[place]]


def _units(rows: Sequence[Row]) -> list[list[Row]]:
    """What is trained in full together."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(holder_of(row), []).append(row)
    return list(found.values())


def _uniform(plan: Plan, mode: Mode, rank: int) -> Plan:
    """The same for every module, but frozen where the loss never reaches or LoRA cannot be."""
    tied = tied_modules(plan.skipped) if mode == "lora" else ()
    changes: list[Change] = []
    for item in plan.modules:
        frozen = item.unreached or item.module in tied
        changes.append(Change(module=item.module, mode="frozen" if frozen else mode, rank=rank))
    made = revise(plan, changes)
    lora = plan.lora.model_copy(
        update={"rank": rank, "alpha": plan.lora.alpha_at(rank), "ranks": []}
    )
    return made.model_copy(update={"lora": lora})


def _dealt(plan: Plan, seed: int) -> Plan:
    """What a plan does with its modules, dealt anew among those of one shape."""
    generator, tied = np.random.default_rng(seed), tied_modules(plan.skipped)
    alike: dict[tuple[object, ...], list[list[PlanModule]]] = {}
    for unit in _units(plan.modules):
        shape = tuple(
            (item.form, item.matrices, item.out_features, item.in_features)
            + ((item.module,) if item.module in tied or item.unreached else ())
            for item in unit
        )
        alike.setdefault(shape, []).append(unit)
    changes = []
    for units in alike.values():
        for unit, place in zip(units, generator.permutation(len(units)), strict=True):
            for item, other in zip(unit, units[place], strict=True):
                changes.append(Change(module=item.module, mode=other.mode, rank=other.rank or 0))
    return revise(plan, changes)
