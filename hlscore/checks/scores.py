"""Whether the scores of a plan tell its modules apart, and the modes follow from them."""

from __future__ import annotations

from collections.abc import Iterator

from hlscore.artifacts.plan import Plan
from hlscore.checks.findings import Finding
from hlscore.checks.rules import PLAN_AGAIN, Rule

_MEASURE = "Rank again with more probes (--samples), and look at the scores before planning."

ALL_ZERO = Rule(
    code="HLS501",
    name="scores differ from zero",
    asks="Some score is not zero.",
    why="Nothing was measured: the order is the order of names.",
    remedy=_MEASURE,
)
CONSTANT = Rule(
    code="HLS502",
    name="scores differ",
    asks="The scores are not all the same.",
    why="They do not tell the modules apart: the choice is arbitrary.",
    remedy=_MEASURE,
)
NO_SCORE = Rule(
    code="HLS503",
    name="scores are there",
    asks="Every module has a score.",
    why="A module without one is never chosen, whatever it would gain.",
    remedy="Choose another --score, or rank again with exact gradients (--estimator exact).",
    level="warning",
)
NO_GAIN = Rule(
    code="HLS504",
    name="gain above zero",
    asks="No module is bought in full for a score of zero or less.",
    why="There was no measured gain to buy.",
    remedy=PLAN_AGAIN,
)
ORDER = Rule(
    code="HLS505",
    name="best scores first",
    asks="Under a budget of modules, none in full scores lower than one that is not.",
    why="The modes were edited, or are not what the scores say.",
    remedy=f"{PLAN_AGAIN} --lock keeps a choice of your own, and marks it.",
)

RULES = (ALL_ZERO, CONSTANT, NO_SCORE, NO_GAIN, ORDER)


def check_scores(plan: Plan) -> Iterator[Finding]:
    """Look at the scores of a plan.

    Args:
        plan: The plan.

    Yields:
        What makes them useless, and modes that do not follow from them.
    """
    if plan.method != "score":
        return
    known = [item.score for item in plan.modules if item.score is not None]
    if known and not any(known):
        yield ALL_ZERO.finding("Every score is zero.", ("modules", 0, "score"))
    elif len(known) > 1 and len(set(known)) == 1:
        message = f"All {len(known):,} scores are {known[0]:g}."
        yield CONSTANT.finding(message, ("modules", 0, "score"))
    for place, item in enumerate(plan.modules):
        if item.score is None:
            yield NO_SCORE.finding(
                f"'{item.module}' has no {plan.score.name}.",
                ("modules", place, "score"),
                level="warning" if known else "error",
            )
    if not plan.lora.ranks:
        yield from _choice(plan)


def _choice(plan: Plan) -> Iterator[Finding]:
    by_count = plan.budget.unit == "modules"
    left = [
        (item.score, place) for place, item in enumerate(plan.modules)
        if item.mode != "full" and not item.locked and item.score is not None
    ]  # fmt: skip
    best_left, at = max(left, key=lambda pair: pair[0], default=(0.0, 0))
    other = plan.modules[at].module if plan.modules else ""
    for place, item in enumerate(plan.modules):
        if item.mode != "full" or item.locked:
            continue
        score, path = item.score or 0.0, ("modules", place, "mode")
        if score <= 0:
            message = f"'{item.module}' is trained in full for a score of {score:g}."
            yield NO_GAIN.finding(message, path)
        if by_count and left and score < best_left:
            message = f"'{item.module}' is trained in full, and '{other}' with a higher score "
            yield ORDER.finding(f"{message}is not.", path)
    if by_count and best_left > 0 and len(plan.full) < plan.budget.limit:
        message = f"'{other}' is not trained in full though the budget has room for it."
        yield ORDER.finding(message, ("modules", at, "mode"))
