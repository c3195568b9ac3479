"""Whether a plan adds up: parameters, totals, budget, memory, places."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from pydantic import BaseModel

from hlscore.artifacts.plan import Plan, PlanModule, PlanTotals
from hlscore.checks.rule import PLAN_AGAIN, Case, Finding, Level, Rule
from hlscore.errors import BudgetError
from hlscore.planning.budget import parse_budget, share_of
from hlscore.planning.parts import budget_of, stability_of, totals_of
from hlscore.planning.revision import choice_of

TOTALS = Rule(
    code="HLS201",
    name="totals",
    asks="The totals are what the modules add up to.",
    why="Budgets and comparisons go by the totals.",
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
)
MEMORY = Rule(
    code="HLS204",
    name="memory adds up",
    asks="The training memory is the sum of its uses.",
    why="Whether the training fits a device is read off the total.",
)
POSITIONS = Rule(
    code="HLS205",
    name="places by score",
    asks="Places run from 1 on, each once, and the scores fall with them.",
    why="Places are what people and other tools choose by.",
)
PARAMETERS = Rule(
    code="HLS206",
    name="parameters of modules",
    asks="Parameters and trained parameters of a module follow from its shape, mode and rank.",
    why="Totals and budgets are sums over them.",
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
)

# Plans hold six digits.
_DIGITS = 2e-6


def check(case: Case) -> Iterator[Finding]:
    """Add a plan up again."""
    plan, modules = case.plan, []
    for place, item in enumerate(plan.modules):
        trained = choice_of(item).trained_params
        yield from _module(plan, item, place, trained)
        modules.append(item.model_copy(update={"trained_params": trained}))
    totals = totals_of(modules, plan.lora.rank, plan.totals.model_params)
    yield from _stated(TOTALS, "totals", plan.totals, totals)
    if totals.candidate_params > plan.model.params:
        yield TOTALS.finding(
            f"The modules have {totals.candidate_params:,} parameters, more than the model's "
            f"{plan.model.params:,}.",
            ("model", "params"),
        )
    if not totals.trained_params:
        yield NOTHING.finding("The plan trains nothing.", ("modules",))
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
        if isinstance(said, float) and isinstance(value, float):
            same = math.isclose(said, value, rel_tol=_DIGITS, abs_tol=1e-12)
        else:
            same = said == value
        if not same:
            shown = [f"{each:,}" if isinstance(each, int) else str(each) for each in (said, value)]
            message = f"'{section}.{name}' is {shown[0]}; the modules give {shown[1]}."
            yield rule.finding(message, (section, name))


def _module(plan: Plan, item: PlanModule, place: int, trained: int) -> Iterator[Finding]:
    name, biases = item.module, item.matrices * item.out_features
    weights = biases * item.in_features
    if item.params not in (weights, weights + biases):
        yield PARAMETERS.finding(
            f"'{name}' has {item.params:,} parameters; its shape gives {weights:,}, or "
            f"{weights + biases:,} with a bias.",
            ("modules", place, "params"),
        )
    if item.trained_params != trained:
        yield PARAMETERS.finding(
            f"'{name}' trains {item.trained_params:,} parameters; its mode gives {trained:,}.",
            ("modules", place, "trained_params"),
        )
    if item.rank is not None and item.alpha not in (None, plan.lora.alpha_at(item.rank)):
        yield ALPHA.finding(
            f"'{name}' has alpha {item.alpha} at rank {item.rank}; the plan's ratio gives "
            f"{plan.lora.alpha_at(item.rank)}.",
            ("modules", place, "alpha"),
        )


def _budget(plan: Plan, modules: list[PlanModule], totals: PlanTotals) -> Iterator[Finding]:
    stated = plan.budget
    try:
        budget = parse_budget(stated.asked)
    except BudgetError as error:
        yield BUDGET_STATED.finding(error.message, ("budget", "asked"))
        return
    most = stated.trained_limit
    if most is not None:
        whole = totals.candidate_params
        most = None if budget.share is None else share_of(budget.share, whole)
    true = budget_of(budget, stated.counts, modules, plan.memory, trained_limit=most)
    yield from _stated(BUDGET_STATED, "budget", stated, true)
    if stated.unit != true.unit:
        return
    # A plan to compare with may cost more than the plan that it is compared with.
    level: Level = "error" if plan.method == "score" else "warning"
    allows = f"a budget of {true.asked} allows"
    if true.spent > true.limit:
        message = f"The plan takes {true.spent:,} {true.unit}; {allows} {true.limit:,}."
        yield BUDGET.finding(message, ("budget", "spent"), level=level)
    limit, trained = stated.trained_limit, totals.trained_params
    if limit is not None and trained > limit:
        message = f"The plan trains {trained:,} parameters; {allows} {limit:,}."
        yield BUDGET.finding(message, ("budget", "trained_limit"), level=level)


def _positions(plan: Plan) -> Iterator[Finding]:
    order = sorted(enumerate(plan.modules), key=lambda pair: pair[1].position)
    for expected, (place, item) in enumerate(order, start=1):
        if item.position != expected:
            message = f"'{item.module}' has place {item.position}, where {expected} comes next."
            yield POSITIONS.finding(message, ("modules", place, "position"))
            return
    for (_, earlier), (place, later) in pairwise(order):
        if later.score is not None and (earlier.score is None or later.score > earlier.score):
            yield POSITIONS.finding(
                f"'{later.module}' has a higher score than '{earlier.module}', which comes before "
                "it.",
                ("modules", place, "score"),
            )
            return
