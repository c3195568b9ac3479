"""Whether scores tell modules apart, modes follow from them, and resamples choose the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hlscore.artifacts.plan import Plan
from hlscore.checks.rule import PLAN_AGAIN, Case, Finding, Rule
from hlscore.planning.gated import lesser_of_pairs, one_of_each
from hlscore.planning.parts import BORDERLINE as BETWEEN
from hlscore.records import OF_UPDATES, movement_in
from hlscore.scores.registry import SCORES

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
    asks="No module is trained in full with a score of zero or less.",
    why="No gain was measured there.",
)
ORDER = Rule(
    code="HLS505",
    name="best scores first",
    asks="Under a budget of modules, none in full scores lower than one that is not.",
    why="The modes were edited, or are not what the scores say.",
    remedy=f"{PLAN_AGAIN} --lock keeps a choice of your own, and marks it.",
)
NOISE = Rule(
    code="HLS506",
    name="scores above their noise",
    asks="At least as many scores lie above zero with 95 % confidence as modules are in full.",
    why="Below that the choice is mostly noise: other probes would make another.",
    remedy="Rank again with more probes (--samples), or train LoRA of the same size "
    "(`hlscore plan scores.parquet --baseline lora-matched`).",
    level="warning",
)
REWARDS = Rule(
    code="HLS507",
    name="compared with LoRA",
    asks="A plan for reinforcement learning is compared with LoRA of the same size.",
    why="In the project's trials with rewards (GRPO) LoRA did not lag behind full fine-tuning, so "
    "there was nothing for a plan to recover.",
    remedy="Train `hlscore plan scores.parquet --baseline lora-matched` first; ignore this code "
    "once you know that the plan is better.",
    level="warning",
)
SELECTION = Rule(
    code="HLS601",
    name="reselected",
    asks="Every module in full is chosen in enough resamples of the probes.",
    why="Other probes of the same data would choose another module.",
    remedy="Rank again with more probes (--samples), or give the module LoRA.",
    when=("min_selection_probability",),
)
BORDERLINE = Rule(
    code="HLS602",
    name="few borderline modules",
    asks="Few modules are chosen in more than 10 % and less than 90 % of the resamples.",
    why="Chance decides among them.",
    remedy="Rank again with more probes (--samples), or choose a budget between two groups.",
    when=("max_borderline",),
)
NO_STABILITY = Rule(
    code="HLS603",
    name="stability is known",
    asks="The plan says how often resamples choose each module.",
    why="Without it the choice cannot be distinguished from noise.",
    remedy="Rank with --bootstrap above 0, and plan at the rank and score of that run.",
    when=("min_selection_probability", "max_borderline"),
)


def check(case: Case) -> Iterator[Finding]:
    """Look at the scores of a plan, and at the selection probabilities where that is asked for."""
    if case.plan.method == "score":
        yield from _scores(case.plan)
        if not case.plan.lora.ranks:
            yield from _choice(case.plan)
    if NO_STABILITY.applies(case.settings):
        yield from _stability(case)


def _scores(plan: Plan) -> Iterator[Finding]:
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
    clear, full = plan.stability.clear_modules, len(plan.full)
    if clear is not None and clear < full:
        yield NOISE.finding(
            f"{clear:,} of {len(plan.modules):,} scores lie above zero with 95 % confidence, fewer "
            f"than the {full:,} modules in full: the choice is mostly noise.",
            ("stability", "clear_modules"),
        )
    if plan.provenance.probes.objective == "grpo" and full:
        yield REWARDS.finding(
            "The plan is for training with rewards, where LoRA did not lag behind in our trials: "
            "compare with `hlscore plan scores.parquet --baseline lora-matched`.",
            ("provenance", "probes", "objective"),
        )


def _choice(plan: Plan) -> Iterator[Finding]:
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
            yield NO_GAIN.finding(message, path)
        if by_count and left and score < best_left:
            message = f"'{item.module}' is trained in full, and '{other}' with a higher score "
            yield ORDER.finding(f"{message}is not.", path)
    if by_count and best_left > 0 and len(plan.full) < plan.budget.limit:
        message = f"'{other}' is not trained in full though the budget has room for it."
        yield ORDER.finding(message, ("modules", best_at, "mode"))


def _lesser(plan: Plan) -> set[str]:
    """Modules that may not be chosen because of the other module of their gated pair."""
    score = SCORES.get(plan.score.name)  # a plan may be of another version
    of_updates = movement_in(plan.provenance.settings) in OF_UPDATES
    if score is None or not one_of_each(plan.settings.gated_pairs, score, of_updates=of_updates):
        return set()
    scores = np.array([item.score for item in plan.modules], dtype=np.float64)
    full = {item.module for item in plan.modules if item.locked and item.mode == "full"}
    kept = lesser_of_pairs(plan.modules, scores[:, None], full)[:, 0]
    return {item.module for item, value in zip(plan.modules, kept, strict=True) if np.isnan(value)}


def _stability(case: Case) -> Iterator[Finding]:
    least, most = case.settings.min_selection_probability, case.settings.max_borderline
    shares = [item.selection_probability for item in case.plan.modules]
    if all(share is None for share in shares):
        message = "The plan does not say how often resamples choose its modules."
        yield NO_STABILITY.finding(message, ("stability",))
        return
    for place, item in enumerate(case.plan.modules):
        share = item.selection_probability
        if least is None or item.mode != "full" or item.locked:
            continue
        if share is not None and share >= least:
            continue
        shown = "unknown" if share is None else f"{share:.3g}"
        yield SELECTION.finding(
            f"'{item.module}' is trained in full with a selection probability of {shown}, "
            f"below {least:g}.",
            ("modules", place, "selection_probability"),
        )
    low, high = BETWEEN
    between = sum(share is not None and low < share < high for share in shares)
    if most is not None and not most.allows(between, len(shares)):
        yield BORDERLINE.finding(
            f"{between:,} of {len(shares):,} modules are chosen in more than 10 % and less than "
            f"90 % of the resamples; at most {most.text} may be.",
            ("stability", "borderline_modules"),
        )
