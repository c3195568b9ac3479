"""Plans to compare with: what a score has to beat."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hlscore.errors import UsageError
from hlscore.planning.memory import Mode, lora_params
from hlscore.planning.module_options import (
    Option,
    alternative,
    is_unreached,
    option,
    stays_frozen,
)
from hlscore.planning.problem import Problem, Solution
from hlscore.planning.ranked import choose_ranks
from hlscore.planning.uniform import alternatives_of, choose_uniform, take_in_order
from hlscore.records import Matrix
from hlscore.settings import Baseline


def choose_for_score(problem: Problem) -> Solution:
    """The plan that the score gives, with one rank or several."""
    return choose_ranks(problem) if problem.settings.ranks else choose_uniform(problem)


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
    if baseline == "all-full":
        return _alike(problem, "full", 0)
    if baseline == "all-lora":
        return _alike(problem, "lora", problem.settings.rank)
    plan = choose_for_score(problem)
    if baseline == "lora-matched":
        return _alike(problem, "lora", matched_rank(problem, plan))
    if baseline == "random" and problem.settings.ranks:
        return Solution(options=_shuffled(problem, plan))
    if problem.settings.ranks:
        raise UsageError(
            f"--baseline {baseline} trains modules in full, and --ranks chooses ranks.",
            hint="Remove --ranks, or use --baseline random or lora-matched.",
        )
    given = alternatives_of(problem)
    in_full = [plan.options[group[0]].mode == "full" for group in given.free]
    count = sum(len(group) for group, full in zip(given.free, in_full, strict=True) if full)
    orders = {
        "random": lambda: {row.module: row.random or 0.0 for row in problem.rows},
        "largest": lambda: by_size(problem.rows, problem.seed),
        "random-largest": lambda: random_among_largest(problem.rows, count, problem.seed),
    }
    spent = int(given.costs[in_full].sum())
    return take_in_order(problem, orders[baseline](), spent)


def by_size(rows: Sequence[Matrix], seed: int) -> dict[str, float]:
    """Order modules by size; a seeded draw orders those of one size, which a score would else do.

    Returns:
        A number for each module; the highest comes first.
    """
    draw = random.Random(f"{seed}:size")
    numbers = {name: draw.random() for name in sorted(row.module for row in rows)}
    return {row.module: row.n_params + numbers[row.module] for row in rows}


def random_among_largest(rows: Sequence[Matrix], count: int, seed: int) -> dict[str, float]:
    """Order modules at random, those of the largest sizes first.

    Args:
        count: How many will be taken: the first so many come from as few of the largest sizes as
            hold that many.

    Returns:
        A number for each module; the highest comes first.
    """
    sizes = sorted((row.n_params for row in rows), reverse=True)
    smallest = sizes[min(max(count, 1), len(sizes)) - 1]
    draw = random.Random(f"{seed}:largest")
    names = sorted(row.module for row in rows)
    numbers = {name: draw.random() for name in names}
    return {row.module: numbers[row.module] + (row.n_params >= smallest) for row in rows}


def matched_rank(problem: Problem, plan: Solution) -> int:
    """Rank at which LoRA on every candidate trains about as many parameters as a plan.

    Returns:
        The nearest rank, at least 1.
    """
    trained = sum(item.params for item in plan.options)
    return nearest_rank(
        trained, (row for row in problem.rows if not stays_frozen(row, problem.tied))
    )


def nearest_rank(trained: int, modules: Iterable[Matrix]) -> int:
    """Rank at which LoRA trains about so many parameters.

    Returns:
        The nearest rank, at least 1.
    """
    return max(1, round(trained / max(1, sum(lora_params(item, 1) for item in modules))))


def _alike(problem: Problem, mode: Mode, rank: int) -> Solution:
    settings = replace(problem.settings, rank=rank or problem.settings.rank)
    options = []
    for row in problem.rows:
        lock = problem.locks.get(row.module)
        if mode == "full" and lock is None and not is_unreached(row):
            options.append(option(row, "full", 0, settings.memory))
        else:
            options.append(alternative(row, lock, problem.tied, settings))
    return Solution(options=tuple(options))


def _shuffled(problem: Problem, plan: Solution) -> tuple[Option, ...]:
    strata: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for place, row in enumerate(problem.rows):
        if row.module not in problem.locks and not stays_frozen(row, problem.tied):
            strata[row.block, row.kind, row.n_params].append(place)
    options = list(plan.options)
    for key, places in sorted(strata.items()):
        order = sorted(places, key=lambda place: problem.rows[place].module)
        drawn = [plan.options[place] for place in order]
        random.Random(f"{problem.seed}:{key}").shuffle(drawn)
        for place, item in zip(order, drawn, strict=True):
            options[place] = item
    return tuple(options)
