"""What to do with each module: one LoRA rank and some modules in full, or a rank for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

import numpy as np
from numpy.typing import NDArray

from hlscore.errors import BudgetError
from hlscore.planning.knapsack import Menu, Numbers, choose_options
from hlscore.planning.memory import Choice, extra_use
from hlscore.planning.problem import Problem, Solution, free_bytes, uniform_choice, without_lesser
from hlscore.records import Matrix, ModuleRow
from hlscore.scores.registry import score_of

Chosen = NDArray[np.bool_]
Costs = NDArray[np.int64]
# Modules that each resample looks at after the first that does not fit.
NEXT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """What can be done under one LoRA rank: full fine-tuning of some groups, or else."""

    problem: Problem
    rest: tuple[Choice, ...]  # what is done with each row that is not chosen
    costs: Costs  # what full fine-tuning of each group takes of the budget [groups]
    left: int  # what of the budget is left for them

    def with_full(self, chosen: Chosen) -> tuple[Choice, ...]:
        """The chosen groups in full, and what is done with all other rows."""
        choices = list(self.rest)
        for group, taken in zip(self.problem.groups, chosen, strict=True):
            for place in group if taken else ():
                choices[place] = Choice(row=choices[place].row, mode="full")
        return tuple(choices)


def alternatives_of(problem: Problem) -> Alternatives:
    """Price full fine-tuning of every group against its alternative."""
    settings, budget, limit = problem.settings, problem.budget, problem.limit

    def price(choice: Choice) -> int:
        if budget.unit == "bytes":
            return extra_use(choice, settings.memory).total_bytes
        if choice.mode != "full":
            return 0
        return 1 if budget.unit == "modules" else choice.row.n_params

    rest = tuple(
        uniform_choice(row, "lora", settings.rank, problem.tied, problem.locks.get(row.module))
        for row in problem.rows
    )
    prices = [price(item) for item in rest]
    spent = sum(prices)
    if budget.unit == "bytes":
        limit = free_bytes(problem.report.model, budget, settings.memory, spent)
    elif spent > limit:
        raise problem.asks_too_much(f"{spent:,} {budget.unit} in full", f"{limit:,}")
    costs = [
        sum(price(Choice(row=problem.rows[place], mode="full")) - prices[place] for place in group)
        for group in problem.groups
    ]
    return Alternatives(
        problem=problem, rest=rest, costs=np.array(costs, dtype=np.int64), left=limit - spent
    )


def choose_uniform(problem: Problem) -> Solution:
    """Full fine-tuning for the modules of the largest total score.

    The selection probability of a module is the share of bootstrap resamples that choose it.
    """
    given, groups = alternatives_of(problem), problem.groups
    costs, left = given.costs, given.left
    # The score and its resamples, summed over the rows of each group [groups, 1 + resamples].
    table = without_lesser(
        problem.rows,
        np.c_[problem.values, np.array(problem.replicates)],
        {module for module, lock in problem.locks.items() if lock.mode == "full"},
        problem.settings.gated_pairs,
    )
    chosen = np.zeros(len(groups), dtype=np.bool_)
    value = bound = 0.0
    probability: list[float | None] = [None] * len(problem.rows)
    if groups:
        places = [place for group in groups for place in group]
        starts = np.cumsum([0, *map(len, groups)])[:-1]
        sums = np.add.reduceat(table[places], starts, axis=0)
        problem.budget.check_one_fits([row.n_params for row in problem.rows])
        chosen, bound = choose(sums[:, 0], costs, left)
        value = float(sums[chosen, 0].sum())
        if all(problem.replicates):
            resampled = [best_per_cost(scores, costs, left) for scores in sums[:, 1:].T]
            shares = np.mean(resampled, axis=0).repeat([len(group) for group in groups])
            for place, share in zip(places, shares.tolist(), strict=True):
                probability[place] = share
    lesser = np.isnan(table[:, 0]) & ~np.isnan(problem.values)
    return Solution(
        choices=given.with_full(chosen),
        solver="sorted" if (costs == 1).all() else "HiGHS",
        value=value,
        bound=bound,
        probability=tuple(probability),
        lesser=tuple(np.flatnonzero(lesser).tolist()),
    )


def choose(scores: Numbers, costs: Costs, limit: int) -> tuple[Chosen, float]:
    """Choose the modules to train in full: a 0/1 knapsack, solved to a relative gap of 1e-4.

    Modules whose score is zero, negative or unknown are never selected: no gain was measured.

    Args:
        scores: Score of each candidate, NaN where unknown, float64 [n], the best first.
        costs: Cost of each, int64 [n]: 1 under a budget of modules, else parameters or bytes
            beyond those of its alternative.
        limit: What they may cost together.

    Returns:
        Whether each is selected, and an upper bound of the total score of any choice that fits.
    """
    if (costs == 1).all():
        chosen = best_per_cost(scores, costs, limit)
        return chosen, float(scores[chosen].sum())
    # What costs no more than LoRA is chosen anyway, and what exceeds the limit alone is not.
    chosen = (scores > 0) & (costs <= 0)
    limit -= int(costs[chosen].sum())
    total = float(scores[chosen].sum())
    fits = np.flatnonzero((scores > 0) & (costs > 0) & (costs <= limit))
    if not len(fits):
        return chosen, total
    zeros = np.zeros(len(fits))
    picked = choose_options(
        Menu(
            modules=np.repeat(np.arange(len(fits)), 2),
            values=np.c_[zeros, scores[fits]].ravel(),
            costs=np.c_[zeros, costs[fits]].reshape(1, -1),
            limits=np.array([limit], dtype=np.float64),
        )
    )
    chosen[fits] = picked.picks % 2 == 1
    return chosen, picked.bound + total


def best_per_cost(scores: Numbers, costs: Costs, limit: int) -> Chosen:
    """Take the best score per cost first, then what still fits of the next 100.

    The best choice where all cost the same; else nearly, and fast enough for every resample.
    """
    chosen: Chosen = (scores > 0) & (costs <= 0)
    limit -= int(costs[chosen].sum())
    order = np.argsort(-scores / np.maximum(costs, 1), kind="stable")
    order = order[(scores[order] > 0) & (costs[order] > 0)]
    whole = int(np.searchsorted(np.cumsum(costs[order]), limit, side="right"))
    chosen[order[:whole]] = True
    left = limit - int(costs[order[:whole]].sum())
    chosen[fill(order[whole : whole + NEXT], costs, left)] = True
    return chosen


def fill(order: Iterable[int], costs: Sequence[int] | Costs, limit: int) -> list[int]:
    """Places of what fits, taken one after the other."""
    taken = []
    for place in order:
        if costs[place] <= limit:
            limit -= int(costs[place])
            taken.append(place)
    return taken


def fill_by(
    order: Mapping[str, float],
    rows: Sequence[Matrix],
    groups: Sequence[Sequence[int]],
    costs: Sequence[int] | Costs,
    limit: int,
) -> list[int]:
    """Places of the groups that fit, those with the module of the highest number first."""
    numbers = [max(order[rows[place].module] for place in group) for group in groups]
    return fill(sorted(range(len(groups)), key=lambda place: -numbers[place]), costs, limit)


def choose_ranks(problem: Problem) -> Solution:
    """Choose frozen, a LoRA rank or full fine-tuning for every module.

    A budget of parameters or memory holds everything that is trained. A budget of modules limits
    the modules in full; the same share of the candidate parameters limits all that is trained.
    """
    budget, settings = problem.budget, problem.settings
    # Places of all rows by what is trained in full together, in order, and whether it may be.
    alone = set(range(len(problem.rows))).difference(*problem.groups)
    together = dict.fromkeys(problem.groups, True) | {(place,): False for place in alone}
    units = dict(sorted(together.items()))
    menus = [options_of(problem, unit, may_be_full=free) for unit, free in units.items()]
    options = [option for found, _ in menus for option in found]
    values, full, params, extra_bytes = np.concatenate([table for _, table in menus]).T
    most = budget.trained_limit([row.n_params for row in problem.rows]) or 0
    if budget.unit == "bytes":
        free = free_bytes(problem.report.model, budget, settings.memory)
        costs, limits = [extra_bytes], [free]
    elif budget.unit == "parameters":
        costs, limits = [params], [problem.limit]
    else:
        costs, limits = [full, params], [problem.limit, most]
    menu = Menu(
        modules=np.repeat(np.arange(len(menus)), [len(found) for found, _ in menus]),
        values=values.copy(),
        costs=np.array(costs),
        limits=np.array(limits, dtype=np.float64),
    )
    try:
        picked = choose_options(menu)
    except BudgetError as error:
        # Not even the cheapest option of every module fits.
        number, least, room = (
            int(np.minimum.reduceat(costs, menu.starts).sum())
            for costs in (full, params, extra_bytes)
        )
        if budget.unit == "bytes":
            free_bytes(problem.report.model, budget, settings.memory, room)
        needs, allows = f"at least {least:,} trained parameters", f"{problem.limit:,}"
        if budget.unit == "modules":
            needs += f" and {number:,} modules in full" if number else ""
            allows = f"{most:,}" + (f" and {problem.limit:,}" if number else "")
        raise problem.asks_too_much(needs, allows) from error
    choices: dict[int, Choice] = {}
    for unit, pick in zip(units, picked.picks, strict=True):
        choices |= dict(zip(unit, options[pick], strict=True))
    return Solution(
        choices=tuple(choices[place] for place in range(len(problem.rows))),
        solver="HiGHS",
        value=picked.value,
        bound=picked.bound,
    )


def options_of(
    problem: Problem, unit: tuple[int, ...], *, may_be_full: bool
) -> tuple[list[tuple[Choice, ...]], Numbers]:
    """What may be done with the rows of a unit, without what costs no less and is worth no more.

    Returns:
        Options, each with a choice for every row, and a table of their values, modules in full,
        trained parameters, and bytes on top of leaving the rows frozen, float64 [options, 4].
    """
    memory = problem.settings.memory
    rows = [problem.rows[place] for place in unit]
    found, lines = [], []
    for option in product(*(_choices(problem, row, may_be_full) for row in rows)):
        choices = tuple(choice for choice, _ in option)
        full = sum(choice.mode == "full" for choice in choices)
        if full in (0, len(rows)):
            found.append(choices)
            lines.append((
                sum(value for _, value in option),
                full,
                sum(choice.trained_params for choice in choices),
                sum(extra_use(choice, memory).total_bytes for choice in choices),
            ))  # fmt: skip
    table = np.array(lines, dtype=np.float64)
    signed = table * (-1, 1, 1, 1)
    # beats[i, j]: option i is worth at least what j is, and costs no more of any kind. Of two that
    # beat each other the first one stays.
    beats = (signed[:, None] <= signed[None]).all(axis=2)
    lost = (np.triu(beats, 1) | (np.tril(beats, -1) & ~beats.T)).any(axis=0)
    return [found[place] for place in np.flatnonzero(~lost)], table[~lost]


def _choices(problem: Problem, row: ModuleRow, may_be_full: bool) -> Iterator[tuple[Choice, float]]:
    """What may be done with a row, and what each is worth over leaving it frozen.

    Ranks that span the whole matrix are left out, as full fine-tuning does the same.
    """
    settings, lock, score = problem.settings, problem.locks.get(row.module), problem.score
    ranks = settings.ranks if lock is None or lock.rank is None else (lock.rank,)
    # A cross-fitted curve can fall below zero and rise again, which no true one does: what a rank
    # leaves is at most what a smaller one leaves, and at least nothing. A module without measured
    # signal is then worth nothing at any rank.
    known = sorted({0, settings.rank, *settings.ranks})
    left = (max(0.0, score_of(row, score, rank) or 0.0) for rank in known)
    curve = dict(zip(known, accumulate(left, min), strict=True))

    def lora(rank: int) -> tuple[Choice, float]:
        gain = curve[0] - curve.get(rank, curve[0])
        return Choice(row=row, mode="lora", rank=rank), float(gain**settings.value_power)

    frozen = Choice(row=row, mode="frozen"), 0.0
    full = Choice(row=row, mode="full"), float(curve[0] ** settings.value_power)
    useful = [rank for rank in ranks if rank < row.max_rank]
    if lock is not None:
        locked = {"frozen": [frozen], "full": [full]}
        yield from locked.get(lock.mode) or map(lora, useful or ranks[:1])
        return
    if row.unreached:
        yield frozen
        return
    tied = row.module in problem.tied
    if tied or not settings.min_rank:
        yield frozen
    if not tied:
        useful = [rank for rank in useful if rank >= settings.min_rank]
        least = [settings.min_rank] if settings.min_rank and not may_be_full else []
        yield from map(lora, useful or least)
    if may_be_full:
        yield full
