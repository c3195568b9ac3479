"""Plans to compare with: what a score has to beat."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from hlscore.errors import UsageError
from hlscore.planning.allocation import alternatives_of, choose_ranks, choose_uniform, fill_by
from hlscore.planning.memory import Choice, Mode, lora_params
from hlscore.planning.problem import Problem, Solution, uniform_choice
from hlscore.records import Matrix
from hlscore.settings import Baseline


def choose_baseline(problem: Problem, baseline: Baseline) -> Solution:
    """A plan to compare with.

    `lora-matched` is LoRA of one rank on every candidate, with the rank whose parameters come
    nearest to what the plan of the score trains. `random` trains as much in full as that plan, in
    the order of the stratified control; where the plan has ranks of its own, its modes and ranks
    are drawn anew among modules of one kind and size, which costs exactly the same. `largest`
    trains as much in full as the plan in order of size; of the modules of the largest sizes, as few
    sizes as hold that many, `random-largest` draws some, and `last-layers` takes those of the last
    layers. `all-lora` and `all-full` treat every candidate alike, whatever the budget.
    Locks hold; weights that are tied stay frozen where LoRA is meant, and modules that the loss
    never reaches everywhere.
    """
    rows, settings, seed = problem.rows, problem.settings, problem.report.run.seed

    def uniform(mode: Mode, rank: int) -> Solution:
        locks, tied = problem.locks, problem.tied
        return Solution(
            choices=tuple(
                uniform_choice(row, mode, rank, tied, locks.get(row.module)) for row in rows
            )
        )

    if baseline == "all-full":
        return uniform("full", settings.rank)
    if baseline == "all-lora":
        return uniform("lora", settings.rank)
    plan = choose_ranks(problem) if settings.ranks else choose_uniform(problem)
    if baseline == "lora-matched":
        trained = sum(item.trained_params for item in plan.choices)
        adapted = (row for row in rows if not (row.unreached or row.module in problem.tied))
        return uniform("lora", nearest_rank(trained, adapted))
    if settings.ranks:
        if baseline == "random":
            return Solution(choices=shuffled(plan.choices, problem.groups, problem.tied, seed))
        raise UsageError(
            f"--baseline {baseline} trains modules in full, and --ranks chooses ranks.",
            hint="Remove --ranks, or use --baseline random or lora-matched.",
        )
    given, groups = alternatives_of(problem), problem.groups
    in_full = np.array([plan.choices[group[0]].mode == "full" for group in groups], dtype=bool)
    if baseline == "random":
        order = {row.module: row.random or 0.0 for row in rows}
    elif baseline == "largest":
        order = by_size(rows, seed)
    else:
        count = sum(len(group) for group, full in zip(groups, in_full, strict=True) if full)
        if baseline == "last-layers":
            order = by_depth(rows, seed, count)
        else:
            order = _largest_first(rows, _draws(rows, f"{seed}:largest"), count)
    chosen = np.zeros(len(groups), dtype=np.bool_)
    chosen[fill_by(order, rows, groups, given.costs, int(given.costs[in_full].sum()))] = True
    return Solution(choices=given.with_full(chosen))


def by_size(rows: Sequence[Matrix], seed: int) -> dict[str, float]:
    """Size of each module plus a seeded draw below 1, so that no score orders those of one size."""
    numbers = _draws(rows, f"{seed}:size")
    return {row.module: row.n_params + numbers[row.module] for row in rows}


def by_depth(rows: Sequence[Matrix], seed: int, count: int) -> dict[str, float]:
    """Layer of each module plus a seeded draw below 1, modules of the largest sizes first.

    Args:
        count: So many modules are of those sizes at least.
    """
    numbers = _draws(rows, f"{seed}:depth")
    depths = {
        row.module: numbers[row.module] + (-1 if row.layer is None else row.layer) for row in rows
    }
    return _largest_first(rows, depths, count)


def _largest_first(
    rows: Sequence[Matrix], order: Mapping[str, float], count: int
) -> dict[str, float]:
    """An order in which modules of the largest sizes, of as few as hold `count`, come first."""
    sizes = sorted((row.n_params for row in rows), reverse=True)
    smallest = sizes[min(max(count, 1), len(sizes)) - 1]
    ahead = 1 + max(order.values()) - min(order.values())
    return {row.module: order[row.module] + ahead * (row.n_params >= smallest) for row in rows}


def _draws(rows: Sequence[Matrix], seed: str) -> dict[str, float]:
    draw = random.Random(seed)
    return {name: draw.random() for name in sorted(row.module for row in rows)}


def nearest_rank(trained: int, modules: Iterable[Matrix]) -> int:
    """The rank, at least 1, at which LoRA trains about so many parameters."""
    return max(1, round(trained / max(1, sum(lora_params(item, 1) for item in modules))))


def shuffled(
    choices: Sequence[Choice], groups: Iterable[Sequence[int]], tied: Collection[str], seed: int
) -> tuple[Choice, ...]:
    """Choices drawn anew among modules of one kind and size, which costs exactly the same.

    Args:
        groups: Places of the choices to draw anew, in groups that are trained in full together.
        tied: Modules whose weight another one shares; their groups are left as they are.
    """
    strata: dict[tuple[str | int, ...], list[Sequence[int]]] = defaultdict(list)
    for group in groups:
        rows = [choices[place].row for place in group]
        if not any(row.module in tied for row in rows):
            key = tuple(value for row in rows for value in (row.block, row.kind, row.n_params))
            strata[key].append(group)
    drawn = list(choices)
    for key, alike in strata.items():
        alike.sort(key=lambda group: choices[group[0]].row.module)
        order = alike.copy()
        random.Random(f"{seed}:{key}").shuffle(order)
        for group, other in zip(alike, order, strict=True):
            for place, source in zip(group, other, strict=True):
                drawn[place] = replace(choices[source], row=choices[place].row)
    return tuple(drawn)
