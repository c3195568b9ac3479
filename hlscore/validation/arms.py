"""The arms of a validation: the plan, and the plans that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hlscore.artifacts.plan import Plan
from hlscore.errors import UsageError
from hlscore.planning.allocation import fill_by
from hlscore.planning.baselines import by_depth, by_size, nearest_rank, shuffled
from hlscore.planning.memory import Choice, Mode
from hlscore.planning.parts import choice_of, revise
from hlscore.planning.problem import groups_of, uniform_choice
from hlscore.records import Matrix, tied_modules
from hlscore.scores.rows import stratified_scores

LORA, MATCHED, RSLORA = "lora", "matched", "rslora"
RANDOM, LARGEST, LAST, PLAN, FULL = "random", "largest", "last_layers", "plan", "full"


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
    nearest to what the plan trains. `rslora` is the same with the scaling of rsLoRA
    (arXiv:2312.03732), where that is larger. `random` trains modules in full in the
    order of a control that is stratified by kind and size, as long as they fit into what the plan
    trains in full; of a plan with a rank for each module it draws modes and ranks anew among
    modules of one kind and size. `largest` trains the largest modules in full, as many parameters
    as the plan, `last_layers` those of the largest sizes in the last layers; plans of ranks have no
    such baselines.
    """
    if not plan.totals.full_modules and not plan.lora.ranks:
        raise UsageError(
            "The plan trains no module in full: there is nothing to try out.",
            hint="Make one with a larger budget: `hlscore plan scores.parquet --budget 0.1`.",
        )

    def uniform(mode: Mode, rank: int, alpha: int | None = None) -> Plan:
        lora = plan.lora.model_copy(
            update={"rank": rank, "alpha": alpha or plan.lora.alpha_at(rank), "ranks": []}
        )
        choices = [uniform_choice(item, mode, rank, tied) for item in plan.modules]
        return revise(plan.model_copy(update={"lora": lora}), choices)

    tied = tied_modules(plan.skipped)
    rows = [item for item in plan.modules if not item.unreached]
    lora = uniform("lora", plan.lora.rank)
    rank = nearest_rank(plan.totals.trained_params, lora.lora_modules)
    arms = {LORA: dict.fromkeys(seeds, lora), MATCHED: dict.fromkeys(seeds, uniform("lora", rank))}
    if (alpha := rslora_alpha(rank)) > plan.lora.alpha_at(rank):
        arms[RSLORA] = dict.fromkeys(seeds, uniform("lora", rank, alpha))
    if plan.lora.ranks:
        groups = groups_of(rows).values()
        choices = [choice_of(item) for item in rows]
        arms[RANDOM] = {seed: revise(plan, shuffled(choices, groups, tied, seed)) for seed in seeds}
    else:
        budget = plan.totals.full_params

        def with_full(modules: Sequence[str]) -> Plan:
            by_name = {item.module: item for item in rows}
            return revise(lora, [Choice(row=by_name[name], mode="full") for name in modules])

        arms[RANDOM] = {
            seed: with_full(drawn_modules(rows, seed=seed, params=budget)) for seed in seeds
        }
        largest = with_full(_filling(rows, by_size(rows, plan.provenance.seed), budget))
        arms[LARGEST] = dict.fromkeys(seeds, largest)
        depths = by_depth(rows, plan.provenance.seed, plan.totals.full_modules)
        arms[LAST] = dict.fromkeys(seeds, with_full(_filling(rows, depths, budget)))
    arms[PLAN] = dict.fromkeys(seeds, plan)
    if full:
        arms[FULL] = dict.fromkeys(seeds, uniform("full", plan.lora.rank))
    return tuple(Arm(name=name, plans=plans) for name, plans in arms.items())


def rslora_alpha(rank: int) -> int:
    """Alpha with which LoRA is scaled as rsLoRA is with an alpha of twice the rank.

    A multiple of the rank, so that a plan has the same ratio of the two at every rank.
    """
    return round(2 * math.sqrt(rank)) * rank


def drawn_modules(rows: Sequence[Matrix], *, seed: int, params: int) -> list[str]:
    """Names of modules drawn at random, spread over kinds and sizes, of at most `params` together.

    The rest of `params` is smaller than any module that was not drawn.
    """
    return _filling(rows, stratified_scores(rows, seed=seed), params)


def _filling(rows: Sequence[Matrix], order: Mapping[str, float], params: int) -> list[str]:
    """Names of the modules that fit into so many parameters, the highest numbers first."""
    groups = list(groups_of(rows).values())
    costs = [sum(rows[place].n_params for place in group) for group in groups]
    chosen = fill_by(order, rows, groups, costs, params)
    return [rows[place].module for at in chosen for place in groups[at]]
