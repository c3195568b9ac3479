"""Whether scores tell modules apart, modes follow from them, and resamples choose the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hlscore.artifacts.plan import Plan
from hlscore.checks.rule import RULES, Case, Finding, finding
from hlscore.planning.parts import BORDERLINE
from hlscore.planning.problem import without_lesser


def check_scores(case: Case) -> Iterator[Finding]:
    """Look at the scores of a plan, and at the modes that follow from them."""
    plan = case.plan
    if plan.method != "score":
        return
    known = [item.score for item in plan.modules if item.score is not None]
    if known and not any(known):
        yield finding("HLS501", "Every score is zero.", ("modules", 0, "score"))
    elif len(known) > 1 and len(set(known)) == 1:
        message = f"All {len(known):,} scores are {known[0]:g}."
        yield finding("HLS502", message, ("modules", 0, "score"))
    for place, item in enumerate(plan.modules):
        if item.score is None:
            yield finding(
                "HLS503",
                f"'{item.module}' has no {plan.score.name}.",
                ("modules", place, "score"),
                level="warning" if known else "error",
            )
    clear, full = plan.stability.clear_modules, len(plan.full)
    if clear is not None and clear < full:
        yield finding(
            "HLS506",
            f"{clear:,} of {len(plan.modules):,} scores lie above zero with 95 % confidence, fewer "
            f"than the {full:,} modules in full: the choice is mostly noise.",
            ("stability", "clear_modules"),
        )
    if plan.lora.ranks:
        return

    by_count = plan.budget.unit == "modules"
    # Expert stacks are chosen together, by their sum.
    single = [(at, item) for at, item in enumerate(plan.modules) if item.form != "experts"]
    lesser = _lesser(plan)
    left = [
        (item.score, at) for at, item in single
        if item.mode != "full" and not item.locked and item.score is not None
        and item.module not in lesser
    ]  # fmt: skip
    best_left, best_at = max(left, key=lambda pair: pair[0], default=(0.0, 0))
    other = plan.modules[best_at].module if plan.modules else ""
    for at, item in single:
        if item.mode != "full" or item.locked:
            continue
        score, path = item.score or 0.0, ("modules", at, "mode")
        if score <= 0:
            message = f"'{item.module}' is trained in full for a score of {score:g}."
            yield finding("HLS504", message, path)
        if by_count and left and score < best_left:
            message = f"'{item.module}' is trained in full, and '{other}' with a higher score "
            yield finding("HLS505", f"{message}is not.", path)
    if by_count and best_left > 0 and len(plan.full) < plan.budget.limit:
        message = f"'{other}' is not trained in full though the budget has room for it."
        yield finding("HLS505", message, ("modules", best_at, "mode"))


def check_stability(case: Case) -> Iterator[Finding]:
    """Look at the selection probabilities, where that is asked for."""
    least, most = case.settings.min_selection_probability, case.settings.max_borderline
    if not RULES["HLS603"].applies(case.settings):
        return
    shares = [item.selection_probability for item in case.plan.modules]
    if all(share is None for share in shares):
        message = "The plan does not say how often resamples choose its modules."
        yield finding("HLS603", message, ("stability",))
        return
    for place, item in enumerate(case.plan.modules):
        share = item.selection_probability
        if least is None or item.mode != "full" or item.locked:
            continue
        if share is not None and share >= least:
            continue
        shown = "unknown" if share is None else f"{share:.3g}"
        yield finding(
            "HLS601",
            f"'{item.module}' is trained in full with a selection probability of {shown}, "
            f"below {least:g}.",
            ("modules", place, "selection_probability"),
        )
    low, high = BORDERLINE
    between = sum(share is not None and low < share < high for share in shares)
    if most is not None and not most.allows(between, len(shares)):
        yield finding(
            "HLS602",
            f"{between:,} of {len(shares):,} modules are chosen in more than 10 % and less than "
            f"90 % of the resamples; at most {most.text} may be.",
            ("stability", "borderline_modules"),
        )


def _lesser(plan: Plan) -> set[str]:
    """Modules that may not be chosen because of the other module of their gated pair."""
    rows = plan.modules
    scores = np.array([[item.score] for item in rows], dtype=np.float64).reshape(-1, 1)
    full = {item.module for item in rows if item.locked and item.mode == "full"}
    kept = without_lesser(rows, scores, full, plan.settings.gated_pairs)[:, 0]
    return {item.module for item, value in zip(rows, kept, strict=True) if np.isnan(value)}
