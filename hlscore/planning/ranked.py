"""A rank for each module: the budget is spent where the score gains most."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, product

import numpy as np

from hlscore.errors import BudgetError
from hlscore.planning.budget import share_of
from hlscore.planning.knapsack import Menu, Numbers, choose_options
from hlscore.planning.memory import Choice, extra_use
from hlscore.planning.problem import Problem, Solution, free_bytes
from hlscore.records import ModuleRow
from hlscore.scores.registry import score_of


def choose_ranks(problem: Problem) -> Solution:
    """Choose frozen, a LoRA rank or full fine-tuning for every module.

    A budget of parameters or memory holds everything that is trained. A budget of modules limits
    the modules in full; the same share of the candidate parameters limits all that is trained.
    """
    units, budget, settings = units_of(problem), problem.budget, problem.settings
    menus = [options_of(problem, unit, may_be_full=free) for unit, free in units.items()]
    options = [option for found, _ in menus for option in found]
    values, full, params, extra_bytes = np.concatenate([table for _, table in menus]).T
    most = trained_limit(problem) or 0
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


def trained_limit(problem: Problem) -> int | None:
    """Most parameters that may be trained beside a limit of modules; `None` for other budgets."""
    budget, params = problem.budget, sum(row.n_params for row in problem.rows)
    return share_of(budget.share, params) if budget.unit == "modules" and budget.share else None


def units_of(problem: Problem) -> dict[tuple[int, ...], bool]:
    """Places of all rows by what is trained in full together, in order, and whether it may be."""
    groups = problem.chosen_together()
    alone = set(range(len(problem.rows))).difference(*groups)
    units = dict.fromkeys(groups, True) | {(place,): False for place in alone}
    return dict(sorted(units.items()))


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
