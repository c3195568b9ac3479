"""How far a plan may be from another one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hlscore.agreement.measures import jaccard, kendall
from hlscore.artifacts.plan import Plan
from hlscore.checks.findings import Comparison, Finding
from hlscore.checks.rules import Rule
from hlscore.settings import CheckSettings

_LOOK = "Look at `hlscore diff`; then make the new plan the baseline, or keep the old one."

CHANGED = Rule(
    code="HLS801",
    name="few changes",
    asks="Few modules are trained otherwise than in the baseline.",
    why="A larger change should be looked at by a person.",
    remedy=_LOOK,
    when="--max-changed",
)
OVERLAPS_BASELINE = Rule(
    code="HLS802",
    name="overlap with the baseline",
    asks="Most modules in full are those of the baseline.",
    why="A larger change should be looked at by a person.",
    remedy=_LOOK,
    when="--min-overlap",
)
TAU = Rule(
    code="HLS803",
    name="order of the baseline",
    asks="The scores order the modules much like the baseline's.",
    why="Another order means other data, other settings, or noise.",
    remedy="Look at `hlscore diff`; rank with more probes where it is noise.",
    when="--min-tau",
)
OTHER_MODEL = Rule(
    code="HLS804",
    name="model of the baseline",
    asks="Plan and baseline are for models of one structure.",
    why="Modules of the same name need not be the same.",
    remedy="Compare with a plan for the same model.",
    when="--baseline",
)
NO_TAU = Rule(
    code="HLS805",
    name="order can be compared",
    asks="Plan and baseline have scores of one kind for two or more common modules that differ.",
    why="Without them there is no rank correlation.",
    remedy="Compare with a plan by the same score.",
    when="--min-tau",
)

RULES = (CHANGED, OVERLAPS_BASELINE, TAU, OTHER_MODEL, NO_TAU)


def compare(plan: Plan, baseline: Plan, settings: CheckSettings) -> Comparison:
    """Measure how far a plan is from its baseline."""
    old, new = (
        {item.module: (item.mode, item.rank) for item in side.modules} for side in (baseline, plan)
    )
    full = [{item.module for item in side.full} for side in (plan, baseline)]
    order = kendall(*_common_scores(plan, baseline))
    return Comparison(
        baseline=settings.baseline or Path(),
        modules=len(old | new),
        changed=sum(old.get(name) != new.get(name) for name in old | new),
        overlap=jaccard(*full) if any(full) else None,
        tau=order.tau,
        tau_low=order.low,
        tau_high=order.high,
    )


def _common_scores(plan: Plan, baseline: Plan) -> tuple[list[float | None], list[float | None]]:
    """Scores of the modules that both plans list, where both go by the same score."""
    if plan.score.name != baseline.score.name:
        return [], []
    other = {item.module: item.score for item in baseline.modules}
    pairs = [(item.score, other[item.module]) for item in plan.modules if item.module in other]
    return [mine for mine, _ in pairs], [theirs for _, theirs in pairs]


def check_baseline(
    plan: Plan, baseline: Plan, found: Comparison, settings: CheckSettings
) -> Iterator[Finding]:
    """Hold the distance of a plan from its baseline against what is allowed."""
    if plan.model.fingerprint.structure != baseline.model.fingerprint.structure:
        yield OTHER_MODEL.finding(
            f"The plan is for '{plan.model.name}', the baseline for '{baseline.model.name}', and "
            "their structures differ.",
            ("model", "fingerprint", "structure"),
        )
    most, least = settings.max_changed, settings.min_overlap
    if most is not None and not most.allows(found.changed, found.modules):
        yield CHANGED.finding(
            f"{found.changed:,} of {found.modules:,} modules are trained otherwise than in the "
            f"baseline; at most {most.text} may be.",
            ("modules",),
        )
    if least is not None and found.overlap is not None and found.overlap < least:
        yield OVERLAPS_BASELINE.finding(
            f"The modules in full overlap with the baseline's by {found.overlap:.3g}, less than "
            f"{least:g}.",
            ("modules",),
        )
    if settings.min_tau is not None:
        yield from _tau(plan, baseline, found, settings.min_tau)


def _tau(plan: Plan, baseline: Plan, found: Comparison, least: float) -> Iterator[Finding]:
    if found.tau is None:
        mine, theirs = plan.score.name, baseline.score.name
        why = f"by {mine}, it by {theirs}" if mine != theirs else "with too few scores that differ"
        yield NO_TAU.finding(
            f"The order cannot be compared with the baseline's: this plan is {why}.", ("score",)
        )
    elif found.tau < least:
        yield TAU.finding(
            f"The scores agree with the baseline's by a Kendall tau of {found.tau:.3g}, less than "
            f"{least:g}.",
            ("score", "name"),
        )
