"""A rank for each module: the budget is spent where the score gains most."""

from __future__ import annotations

import numpy as np

from hlscore.errors import BudgetError
from hlscore.planning.budget import share_of
from hlscore.planning.knapsack import Menu, choose_options
from hlscore.planning.module_options import Option, curve_of, menu_of
from hlscore.planning.problem import Problem, Solution, free_bytes, too_small


def choose_ranks(problem: Problem) -> Solution:
    """Choose frozen, a LoRA rank or full fine-tuning for every module.

    A budget of parameters or memory holds everything that is trained. A budget of modules limits
    the modules in full; the same share of the candidate parameters limits all that is trained.
    """
    menus = [
        menu_of(
            row,
            problem.locks.get(row.module),
            problem.tied,
            problem.settings,
            curve_of(row, problem.score, problem.settings),
        )
        for row in problem.rows
    ]
    menu = _menu(problem, menus)
    flat = [item for options in menus for item in options]
    try:
        picked = choose_options(menu)
    except BudgetError as error:
        raise _too_small(problem, menus) from error
    return Solution(
        options=tuple(flat[place] for place in picked.picks),
        solver="HiGHS",
        value=picked.value,
        bound=picked.bound,
    )


def trained_limit(problem: Problem) -> int | None:
    """Most parameters that may be trained beside a limit of modules; `None` for other budgets."""
    share = problem.budget.share
    if problem.budget.unit != "modules" or share is None:
        return None
    return share_of(share, sum(row.n_params for row in problem.rows))


def _menu(problem: Problem, menus: list[tuple[Option, ...]]) -> Menu:
    flat = [item for options in menus for item in options]
    params = [float(item.params) for item in flat]
    if problem.budget.unit == "bytes":
        costs, limits = (
            [[float(item.bytes) for item in flat]],
            [free_bytes(problem.report.model, problem.budget, problem.settings.memory)],
        )
    elif problem.budget.unit == "parameters":
        costs, limits = [params], [problem.limit]
    else:
        costs = [[float(item.mode == "full") for item in flat], params]
        limits = [problem.limit, trained_limit(problem) or 0]
    return Menu(
        modules=np.repeat(np.arange(len(menus)), [len(options) for options in menus]),
        values=np.array([item.value for item in flat], dtype=np.float64),
        costs=np.array(costs, dtype=np.float64),
        limits=np.array(limits, dtype=np.float64),
    )


def _too_small(problem: Problem, menus: list[tuple[Option, ...]]) -> BudgetError:
    """The error for a budget that not even the cheapest option of every module fits."""
    if problem.budget.unit == "bytes":
        least = sum(min(item.bytes for item in options) for options in menus)
        return too_small(problem.report.model, problem.budget, problem.settings.memory, least)
    params = sum(min(item.params for item in options) for options in menus)
    full = sum(all(item.mode == "full" for item in options) for options in menus)
    needs = f"at least {params:,} trained parameters"
    allows = f"{problem.limit:,}"
    if problem.budget.unit == "modules":
        needs += f" and {full:,} modules in full" if full else ""
        allows = f"{trained_limit(problem) or 0:,}" + (f" and {problem.limit:,}" if full else "")
    why = [] if not problem.locks else ["--lock"]
    why += ["--min-rank"] if problem.settings.min_rank else []
    return BudgetError(
        f"{' and '.join(why) or 'The plan'} asks for {needs}; a budget of {problem.budget.text} "
        f"allows {allows}.",
        hint="Raise the budget, lock fewer modules, or lower --min-rank.",
    )
