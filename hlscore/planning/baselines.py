"""Plans to compare with: what a score has to beat."""

from __future__ import annotations

from dataclasses import replace

from hlscore.planning.memory import Mode
from hlscore.planning.options import option
from hlscore.planning.problem import Picks, Problem, spent_of
from hlscore.planning.ranked import choose_ranks
from hlscore.planning.uniform import choose_uniform
from hlscore.scores.registry import find_score
from hlscore.scores.rows import order_rows
from hlscore.settings import Baseline


def choose_for_score(problem: Problem) -> Picks:
    """The plan that the score gives, with one rank or several."""
    return choose_ranks(problem) if problem.settings.ranks else choose_uniform(problem)


def choose_baseline(problem: Problem, baseline: Baseline) -> Picks:
    """A plan to compare with.

    `lora-matched` is LoRA of one rank on every candidate, with the rank whose parameters come
    nearest to what the plan of the score trains. `random` draws as many modules, parameters or
    bytes as that plan takes by the stratified control. `all-lora` and `all-full` treat every
    candidate alike. Weights that are tied stay frozen where LoRA is meant.

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
    return _random(problem, plan)


def matched_rank(problem: Problem, plan: Picks) -> int:
    """Rank at which LoRA on every candidate trains about as many parameters as a plan.

    Args:
        problem: The rows.
        plan: The plan.

    Returns:
        The nearest rank, at least 1.
    """
    trained = sum(item.params for item in plan.options)
    each = sum(
        row.matrices * (row.out_features + row.in_features)
        for row in problem.rows
        if row.module not in problem.tied
    )
    return max(1, round(trained / max(1, each)))


def _alike(problem: Problem, mode: Mode, rank: int) -> Picks:
    memory = problem.settings.memory
    options = tuple(
        option(
            row,
            "frozen" if mode == "lora" and row.module in problem.tied else mode,
            rank,
            memory,
        )
        for row in problem.rows
    )
    spent = spent_of(options, problem.budget, "full")
    return Picks(
        options=options,
        limit=spent,
        spent=spent,
        counts="full",
        solver="none",
        value=0.0,
        bound=0.0,
        probability=(None,) * len(options),
    )


def _random(problem: Problem, plan: Picks) -> Picks:
    """Draw as much in full as the plan of the score has, whatever that score found."""
    budget = replace(
        problem.budget,
        share=None,
        amount=plan.spent
        if problem.budget.unit != "modules"
        else spent_of(plan.options, problem.budget, "full"),
    )
    score = find_score("random")
    rows = order_rows(problem.rows, score, problem.settings.rank)
    settings = replace(problem.settings, ranks=())
    drawn = choose_uniform(
        replace(problem, rows=rows, score=score, budget=budget, settings=settings)
    )
    options = dict(zip((row.module for row in rows), drawn.options, strict=True))
    return replace(drawn, options=tuple(options[row.module] for row in problem.rows))
