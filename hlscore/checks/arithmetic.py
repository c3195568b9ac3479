"""Whether a plan adds up: parameters, totals, budget, memory, places."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from pydantic import BaseModel

from hlscore.artifacts.plan import Plan, PlanBudget, PlanModule, PlanTotals
from hlscore.checks.findings import Finding, Level
from hlscore.checks.rules import PLAN_AGAIN, Rule
from hlscore.errors import BudgetError
from hlscore.planning.budget import parse_budget, share_of
from hlscore.planning.revision import choice_of
from hlscore.planning.sums import budget_of, stability_of, totals_of

TOTALS = Rule(
    code="HLS201",
    name="totals",
    asks="The totals are what the modules add up to.",
    why="Budgets and comparisons go by the totals.",
    remedy=PLAN_AGAIN,
)
BUDGET = Rule(
    code="HLS202",
    name="within budget",
    asks="The plan takes no more than its budget allows.",
    why="Training runs out of memory, or the comparison with other plans is unfair.",
    remedy="Plan again with this budget, or ask for the larger one.",
)
BUDGET_STATED = Rule(
    code="HLS203",
    name="budget as stated",
    asks="Unit, limit and spending of the budget follow from what was asked and from the modules.",
    why="A plan whose budget was edited no longer says what it costs.",
    remedy=PLAN_AGAIN,
)
MEMORY = Rule(
    code="HLS204",
    name="memory adds up",
    asks="The training memory is the sum of its uses.",
    why="Whether the training fits a device is read off the total.",
    remedy=PLAN_AGAIN,
)
POSITIONS = Rule(
    code="HLS205",
    name="places by score",
    asks="Places run from 1 on, each once, and the scores fall with them.",
    why="Places are what people and other tools choose by.",
    remedy=PLAN_AGAIN,
)
PARAMETERS = Rule(
    code="HLS206",
    name="parameters of modules",
    asks="Parameters and trained parameters of a module follow from its shape, mode and rank.",
    why="Totals and budgets are sums over them.",
    remedy=PLAN_AGAIN,
)
ALPHA = Rule(
    code="HLS207",
    name="one ratio of alpha to rank",
    asks="Alpha / rank is the same in every module, that of the plan's `lora`.",
    why="Another ratio is another learning rate for that module.",
    remedy=f"{PLAN_AGAIN} --alpha sets the ratio.",
    level="warning",
)
NOTHING = Rule(
    code="HLS208",
    name="trains something",
    asks="The plan trains at least one module.",
    why="Most trainers refuse such a plan.",
    remedy="Plan again with a larger budget or other locks.",
)
STABILITY_STATED = Rule(
    code="HLS209",
    name="stability as stated",
    asks="Reselection and borderline modules follow from the modules' selection probabilities.",
    why="How far the choice can be trusted is read off them.",
    remedy=PLAN_AGAIN,
)

RULES = (
    TOTALS, BUDGET, BUDGET_STATED, MEMORY, POSITIONS, PARAMETERS, ALPHA, NOTHING, STABILITY_STATED,
)  # fmt: skip

# Plans hold six digits.
_DIGITS = 2e-6


def check_arithmetic(plan: Plan) -> Iterator[Finding]:
    """Add a plan up again."""
    for place, item in enumerate(plan.modules):
        yield from _parameters(item, place)
        yield from _alpha(plan, item, place)
    # Added up from what the modes train, whatever the modules say of it.
    modules = [
        item.model_copy(update={"trained_params": choice_of(item).trained_params})
        for item in plan.modules
    ]
    totals = totals_of(modules, plan.lora.rank, plan.totals.model_params)
    yield from _totals(plan, totals)
    yield from _budget(plan, modules, totals)
    yield from _positions(plan)
    stability = stability_of(plan.modules, clear=plan.stability.clear_modules)
    yield from _stated(STABILITY_STATED, "stability", plan.stability, stability)
    parts = {name: size for name, size in plan.memory if name.endswith("_bytes")}
    del parts["total_bytes"]
    total = plan.memory.model_copy(update={"total_bytes": sum(parts.values())})
    yield from _stated(MEMORY, "memory", plan.memory, total)


def _stated(rule: Rule, section: str, stated: BaseModel, true: BaseModel) -> Iterator[Finding]:
    """A finding for each value that is not what it should be."""
    for name, value in true:
        said = getattr(stated, name)
        if not _equal(said, value):
            message = f"'{section}.{name}' is {_shown(said)}; the modules give {_shown(value)}."
            yield rule.finding(message, (section, name))


def _equal(stated: object, true: object) -> bool:
    if isinstance(stated, float) and isinstance(true, float):
        return math.isclose(stated, true, rel_tol=_DIGITS, abs_tol=1e-12)
    return stated == true


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _parameters(item: PlanModule, place: int) -> Iterator[Finding]:
    weights = item.matrices * item.out_features * item.in_features
    biases = item.matrices * item.out_features
    if item.params not in (weights, weights + biases):
        yield PARAMETERS.finding(
            f"'{item.module}' has {item.params:,} parameters; its shape gives {weights:,}, or "
            f"{weights + biases:,} with a bias.",
            ("modules", place, "params"),
        )
    trained = choice_of(item).trained_params
    if item.trained_params != trained:
        yield PARAMETERS.finding(
            f"'{item.module}' trains {item.trained_params:,} parameters; its mode gives "
            f"{trained:,}.",
            ("modules", place, "trained_params"),
        )


def _alpha(plan: Plan, item: PlanModule, place: int) -> Iterator[Finding]:
    if item.rank is None or item.alpha is None:
        return
    expected = plan.lora.alpha_at(item.rank)
    if item.alpha != expected:
        yield ALPHA.finding(
            f"'{item.module}' has alpha {item.alpha} at rank {item.rank}; the plan's ratio gives "
            f"{expected}.",
            ("modules", place, "alpha"),
        )


def _totals(plan: Plan, true: PlanTotals) -> Iterator[Finding]:
    yield from _stated(TOTALS, "totals", plan.totals, true)
    if true.candidate_params > plan.model.params:
        yield TOTALS.finding(
            f"The modules have {true.candidate_params:,} parameters, more than the model's "
            f"{plan.model.params:,}.",
            ("model", "params"),
        )
    if not true.trained_params:
        yield NOTHING.finding("The plan trains nothing.", ("modules",))


def _budget(plan: Plan, modules: list[PlanModule], totals: PlanTotals) -> Iterator[Finding]:
    stated = plan.budget
    try:
        budget = parse_budget(stated.asked)
    except BudgetError as error:
        yield BUDGET_STATED.finding(error.message, ("budget", "asked"))
        return
    whole = sum(item.params for item in plan.modules)
    most = stated.trained_limit
    if most is not None:
        most = None if budget.share is None else share_of(budget.share, whole)
    true = budget_of(budget, stated.counts, modules, plan.memory, trained_limit=most)
    yield from _stated(BUDGET_STATED, "budget", stated, true)
    yield from _overspent(plan, true, totals.trained_params)


def _overspent(plan: Plan, true: PlanBudget, trained: int) -> Iterator[Finding]:
    if plan.budget.unit != true.unit:
        return
    # A plan to compare with may cost more than the plan that it is compared with.
    level: Level = "error" if plan.method == "score" else "warning"
    allows = f"a budget of {true.asked} allows"
    if true.spent > true.limit:
        yield BUDGET.finding(
            f"The plan takes {true.spent:,} {true.unit}; {allows} {true.limit:,}.",
            ("budget", "spent"),
            level=level,
        )
    most = plan.budget.trained_limit
    if most is not None and trained > most:
        yield BUDGET.finding(
            f"The plan trains {trained:,} parameters; {allows} {most:,}.",
            ("budget", "trained_limit"),
            level=level,
        )


def _positions(plan: Plan) -> Iterator[Finding]:
    order = sorted(range(len(plan.modules)), key=lambda place: plan.modules[place].position)
    for expected, place in enumerate(order, start=1):
        item = plan.modules[place]
        if item.position != expected:
            yield POSITIONS.finding(
                f"'{item.module}' has place {item.position}, where {expected} comes next.",
                ("modules", place, "position"),
            )
            return
    for before, place in pairwise(order):
        earlier, later = plan.modules[before], plan.modules[place]
        if later.score is not None and (earlier.score is None or later.score > earlier.score):
            yield POSITIONS.finding(
                f"'{later.module}' has a higher score than '{earlier.module}', which comes before "
                "it.",
                ("modules", place, "score"),
            )
            return
