"""Plans to compare with: what a score has to beat."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from hlscore.planning.memory import Mode
from hlscore.planning.options import (
    Option,
    alternative,
    is_unreached,
    option,
    stays_frozen,
)
from hlscore.planning.problem import Picks, Problem, counts_of, spent_of
from hlscore.planning.ranked import choose_ranks
from hlscore.planning.uniform import choose_uniform, draw_uniform, offer_of
from hlscore.scores.registry import find_score
from hlscore.settings import Baseline


class Adaptable(Protocol):
    """What has a shape that LoRA can be put on."""

    @property
    def matrices(self) -> int:
        """Number of matrices in the weight."""

    @property
    def out_features(self) -> int:
        """Output width."""

    @property
    def in_features(self) -> int:
        """Input width."""


def choose_for_score(problem: Problem) -> Picks:
    """The plan that the score gives, with one rank or several."""
    return choose_ranks(problem) if problem.settings.ranks else choose_uniform(problem)


def choose_baseline(problem: Problem, baseline: Baseline) -> Picks:
    """A plan to compare with.

    `lora-matched` is LoRA of one rank on every candidate, with the rank whose parameters come
    nearest to what the plan of the score trains. `random` trains as much in full as that plan, in
    the order of the stratified control; where the plan has ranks of its own, its modes and ranks
    are drawn anew among modules of one kind and size, which costs exactly the same. `all-lora` and
    `all-full` treat every candidate alike, whatever the budget. Locks hold; weights that are tied
    stay frozen where LoRA is meant, and modules that the loss never reaches everywhere.

    Args:
        problem: Rows, score, budget, locks.
        baseline: Which plan.

    Returns:
        One option per row.

    Raises:
        BudgetError: The plan of the score cannot be had.
    """
    if baseline == "all-full":
        return _alike(problem, "full", 0)
    if baseline == "all-lora":
        return _alike(problem, "lora", problem.settings.rank)
    plan = choose_for_score(problem)
    if baseline == "lora-matched":
        return _alike(problem, "lora", matched_rank(problem, plan))
    if problem.settings.ranks:
        return _picks(problem, _shuffled(problem, plan))
    return _drawn(problem, plan)


def matched_rank(problem: Problem, plan: Picks) -> int:
    """Rank at which LoRA on every candidate trains about as many parameters as a plan.

    Args:
        problem: The rows.
        plan: The plan.

    Returns:
        The nearest rank, at least 1.
    """
    trained = sum(item.params for item in plan.options)
    return nearest_rank(
        trained, (row for row in problem.rows if not stays_frozen(row, problem.tied))
    )


def nearest_rank(trained: int, modules: Iterable[Adaptable]) -> int:
    """Rank at which LoRA trains about so many parameters.

    Args:
        trained: Trained parameters.
        modules: What LoRA of one rank is put on.

    Returns:
        The nearest rank, at least 1.
    """
    each = sum(item.matrices * (item.out_features + item.in_features) for item in modules)
    return max(1, round(trained / max(1, each)))


def _alike(problem: Problem, mode: Mode, rank: int) -> Picks:
    settings = replace(problem.settings, rank=rank or problem.settings.rank)
    options = []
    for row in problem.rows:
        lock = problem.locks.get(row.module)
        if mode == "full" and lock is None and not is_unreached(row):
            options.append(option(row, "full", 0, settings.memory))
        else:
            options.append(alternative(row, lock, problem.tied, settings))
    return _picks(problem, tuple(options))


def _drawn(problem: Problem, plan: Picks) -> Picks:
    """Spend as much in full as the plan of the score has, whatever that score found."""
    offer = offer_of(problem)
    bought = [plan.options[place].mode == "full" for place in offer.free]
    return draw_uniform(problem, find_score("random"), int(offer.spending.costs[bought].sum()))


def _shuffled(problem: Problem, plan: Picks) -> tuple[Option, ...]:
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


def _picks(problem: Problem, options: tuple[Option, ...]) -> Picks:
    return Picks(
        options=options,
        limit=problem.budget.limit(problem.params),
        spent=spent_of(problem, options),
        counts=counts_of(problem),
        solver="none",
        value=0.0,
        bound=0.0,
        probability=(None,) * len(options),
    )
