"""Whether a plan adds up: entries, parameters, totals, budget, memory, places."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from pydantic import BaseModel

from hlscore.artifacts.plan import Plan, PlanModule, PlanTotals
from hlscore.checks.rule import Case, Finding, Level, finding
from hlscore.errors import BudgetError
from hlscore.planning.budget import parse_budget
from hlscore.planning.parts import budget_of, choice_of, stability_of, totals_of

# Plans hold six digits.
_DIGITS = 2e-6


def check_entries(case: Case) -> Iterator[Finding]:
    """Find entries that share a weight, and ranks that do not fit their matrix."""
    plan = case.plan
    modules = {item.module: item for item in reversed(plan.modules)}
    parameters = {item.parameter: item.module for item in reversed(plan.modules)}
    for place, item in enumerate(plan.modules):
        path = ("modules", place, "module")
        owner = parameters[item.parameter]
        if owner != item.module:
            message = f"'{item.module}' has the weight '{item.parameter}', and so has '{owner}'."
            yield finding("HLS106", message, path)
        parts = item.module.split(".")
        for end in range(1, len(parts)):
            outer = modules.get(".".join(parts[:end]))
            if outer is not None and outer.mode != "frozen":
                message = f"'{item.module}' lies inside '{outer.module}', which is planned too."
                yield finding("HLS106", message, path)
        if item.rank is not None and item.rank >= item.max_rank:
            yield finding(
                "HLS110",
                f"LoRA of rank {item.rank} spans the whole of '{item.module}', which is "
                f"{item.size}.",
                ("modules", place, "rank"),
            )
    for place, left_out in enumerate(plan.skipped):
        if left_out.module in modules:
            message = f"'{left_out.module}' is both planned and skipped."
            yield finding("HLS106", message, ("skipped", place, "module"))


def check_arithmetic(case: Case) -> Iterator[Finding]:
    """Add a plan up again."""
    plan, modules = case.plan, []
    for place, item in enumerate(plan.modules):
        name, path = item.module, ("modules", place)
        biases = item.matrices * item.out_features
        weights = biases * item.in_features
        if item.params not in (weights, weights + biases):
            yield finding(
                "HLS206",
                f"'{name}' has {item.params:,} parameters; its shape gives {weights:,}, or "
                f"{weights + biases:,} with a bias.",
                (*path, "params"),
            )
        trained = choice_of(item).trained_params
        if item.trained_params != trained:
            message = f"'{name}' trains {item.trained_params:,} parameters; its mode gives "
            yield finding("HLS206", f"{message}{trained:,}.", (*path, "trained_params"))
        alpha = None if item.rank is None else plan.lora.alpha_at(item.rank)
        if alpha is not None and item.alpha not in (None, alpha):
            message = f"'{name}' has alpha {item.alpha} at rank {item.rank}; the plan's ratio "
            yield finding("HLS207", f"{message}gives {alpha}.", (*path, "alpha"))
        modules.append(item.model_copy(update={"trained_params": trained}))
    totals = totals_of(modules, plan.lora.rank, plan.totals.model_params)
    yield from _stated("HLS201", "totals", plan.totals, totals)
    if totals.candidate_params > plan.model.params:
        yield finding(
            "HLS201",
            f"The modules have {totals.candidate_params:,} parameters, more than the model's "
            f"{plan.model.params:,}.",
            ("model", "params"),
        )
    if not totals.trained_params:
        yield finding("HLS208", "The plan trains nothing.", ("modules",))
    yield from _budget(plan, modules, totals)
    yield from _positions(plan)
    stability = stability_of(plan.modules, clear=plan.stability.clear_modules)
    yield from _stated("HLS209", "stability", plan.stability, stability)
    parts = {name: size for name, size in plan.memory if name.endswith("_bytes")}
    del parts["total_bytes"]
    total = plan.memory.model_copy(update={"total_bytes": sum(parts.values())})
    yield from _stated("HLS204", "memory", plan.memory, total)


def _stated(code: str, section: str, stated: BaseModel, true: BaseModel) -> Iterator[Finding]:
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
            yield finding(code, message, (section, name))


def _budget(plan: Plan, modules: list[PlanModule], totals: PlanTotals) -> Iterator[Finding]:
    stated = plan.budget
    try:
        budget = parse_budget(stated.asked)
    except BudgetError as error:
        yield finding("HLS203", error.message, ("budget", "asked"))
        return
    with_ranks = bool(plan.lora.ranks)
    true = budget_of(budget, modules, plan.memory, with_ranks=with_ranks, method=plan.method)
    yield from _stated("HLS203", "budget", stated, true)
    if stated.unit != true.unit:
        return
    # A plan to compare with may cost more than the plan that it is compared with.
    level: Level = "error" if plan.method == "score" else "warning"
    allows = f"a budget of {true.asked} allows"
    if true.spent > true.limit:
        message = f"The plan takes {true.spent:,} {true.unit}; {allows} {true.limit:,}."
        yield finding("HLS202", message, ("budget", "spent"), level=level)
    limit, trained = stated.trained_limit, totals.trained_params
    if limit is not None and trained > limit:
        message = f"The plan trains {trained:,} parameters; {allows} {limit:,}."
        yield finding("HLS202", message, ("budget", "trained_limit"), level=level)


def _positions(plan: Plan) -> Iterator[Finding]:
    order = sorted(enumerate(plan.modules), key=lambda pair: pair[1].position)
    for expected, (place, item) in enumerate(order, start=1):
        if item.position != expected:
            message = f"'{item.module}' has place {item.position}, where {expected} comes next."
            yield finding("HLS205", message, ("modules", place, "position"))
            return
    for (_, earlier), (place, later) in pairwise(order):
        if later.score is not None and (earlier.score is None or later.score > earlier.score):
            yield finding(
                "HLS205",
                f"'{later.module}' has a higher score than '{earlier.module}', which comes before "
                "it.",
                ("modules", place, "score"),
            )
            return
