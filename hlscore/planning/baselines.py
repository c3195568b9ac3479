"""Plans to compare with: what a score has to beat."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from hlscore.errors import UsageError
from hlscore.planning.memory import Choice, lora_params
from hlscore.planning.problem import Problem, Solution
from hlscore.planning.ranked import choose_ranks, units_of
from hlscore.planning.uniform import alternatives_of, choose_uniform, fill
from hlscore.records import Matrix
from hlscore.settings import Baseline


def choose_baseline(problem: Problem, baseline: Baseline) -> Solution:
    """A plan to compare with.

    `lora-matched` is LoRA of one rank on every candidate, with the rank whose parameters come
    nearest to what the plan of the score trains. `random` trains as much in full as that plan, in
    the order of the stratified control; where the plan has ranks of its own, its modes and ranks
    are drawn anew among modules of one kind and size, which costs exactly the same. `largest`
    trains as much in full as the plan in order of size, `random-largest` draws among modules of
    the largest sizes. `all-lora` and `all-full` treat every candidate alike, whatever the budget.
    Locks hold; weights that are tied stay frozen where LoRA is meant, and modules that the loss
    never reaches everywhere.
    """
    rows, settings, seed = problem.rows, problem.settings, problem.report.run.seed

    def with_lora(rank: int) -> Solution:
        return Solution(choices=tuple(problem.otherwise(row, rank) for row in rows))

    if baseline == "all-full":
        return Solution(
            choices=tuple(
                problem.otherwise(row, settings.rank)
                if row.module in problem.locks or row.unreached
                else Choice(row=row, mode="full")
                for row in rows
            )
        )
    if baseline == "all-lora":
        return with_lora(settings.rank)
    plan = choose_ranks(problem) if settings.ranks else choose_uniform(problem)
    if baseline == "lora-matched":
        trained = sum(item.trained_params for item in plan.choices)
        adapted = (row for row in rows if not problem.without_lora(row))
        return with_lora(nearest_rank(trained, adapted))
    if settings.ranks:
        if baseline == "random":
            return Solution(choices=_shuffled(problem, plan))
        raise UsageError(
            f"--baseline {baseline} trains modules in full, and --ranks chooses ranks.",
            hint="Remove --ranks, or use --baseline random or lora-matched.",
        )
    given = alternatives_of(problem)
    in_full = np.array([plan.choices[group[0]].mode == "full" for group in given.free], dtype=bool)
    if baseline == "random":
        order = {row.module: row.random or 0.0 for row in rows}
    elif baseline == "largest":
        order = by_size(rows, seed)
    else:
        # As many as the plan has come from as few of the largest sizes as hold that many.
        count = sum(len(group) for group, full in zip(given.free, in_full, strict=True) if full)
        sizes = sorted((row.n_params for row in rows), reverse=True)
        smallest = sizes[max(count, 1) - 1]
        order = _draws(rows, f"{seed}:largest")
        order = {row.module: order[row.module] + (row.n_params >= smallest) for row in rows}
    numbers = [max(order[rows[place].module] for place in group) for group in given.free]
    places = np.argsort(-np.array(numbers, dtype=np.float64), kind="stable")
    chosen = np.zeros(len(given.free), dtype=np.bool_)
    chosen[fill(places, given.costs, int(given.costs[in_full].sum()))] = True
    return Solution(choices=given.with_full(chosen))


def by_size(rows: Sequence[Matrix], seed: int) -> dict[str, float]:
    """Size of each module plus a seeded draw below 1, so that no score orders those of one size."""
    numbers = _draws(rows, f"{seed}:size")
    return {row.module: row.n_params + numbers[row.module] for row in rows}


def _draws(rows: Sequence[Matrix], seed: str) -> dict[str, float]:
    draw = random.Random(seed)
    return {name: draw.random() for name in sorted(row.module for row in rows)}


def nearest_rank(trained: int, modules: Iterable[Matrix]) -> int:
    """The rank, at least 1, at which LoRA trains about so many parameters."""
    return max(1, round(trained / max(1, sum(lora_params(item, 1) for item in modules))))


def _shuffled(problem: Problem, plan: Solution) -> tuple[Choice, ...]:
    """The choices of a plan, drawn anew among modules of one kind and size."""
    rows = problem.rows
    strata: dict[tuple[str | int, ...], list[tuple[int, ...]]] = defaultdict(list)
    for unit, may_be_full in units_of(problem).items():
        stacks = [rows[place] for place in unit]
        if may_be_full and not any(row.module in problem.tied for row in stacks):
            parts = [(row.block, row.kind, row.n_params) for row in stacks]
            strata[tuple(value for part in parts for value in part)].append(unit)
    choices = list(plan.choices)
    for key, units in sorted(strata.items()):
        order = sorted(units, key=lambda unit: rows[unit[0]].module)
        drawn = [[plan.choices[place] for place in unit] for unit in order]
        random.Random(f"{problem.report.run.seed}:{key}").shuffle(drawn)
        for unit, items in zip(order, drawn, strict=True):
            for place, item in zip(unit, items, strict=True):
                choices[place] = Choice(row=rows[place], mode=item.mode, rank=item.rank)
    return tuple(choices)
