"""How far a plan may be from another one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hlscore.agreement.difference import difference
from hlscore.agreement.measures import RankAgreement
from hlscore.agreement.sides import Side
from hlscore.artifacts.plan import Plan
from hlscore.checks.rule import Case, Distance, Finding, finding


def distance(plan: Plan, file: Path, baseline: Plan, baseline_file: Path) -> Distance:
    """Measure how far a plan is from its baseline."""
    sides = ((baseline_file, baseline), (file, plan))
    found = difference(
        tuple(Side(path=path, label=str(path), content=content) for path, content in sides), {}
    )
    same_score = plan.score.name == baseline.score.name
    order = found.agreement if same_score else RankAgreement(n=0)
    return Distance(
        baseline=baseline_file,
        modules=found.common + found.only_a + found.only_b,
        changed=len(found.moves),
        overlap=found.jaccard_full if baseline.full or plan.full else None,
        tau=order.tau,
        tau_low=order.low,
        tau_high=order.high,
    )


def check_baseline(case: Case) -> Iterator[Finding]:
    """Compare the distance of a plan from its baseline with what is allowed."""
    plan, baseline, found, settings = case.plan, case.baseline, case.distance, case.settings
    if baseline is None or found is None:
        return
    if plan.model.fingerprint.structure != baseline.model.fingerprint.structure:
        yield finding(
            "HLS804",
            f"The plan is for '{plan.model.name}', the baseline for '{baseline.model.name}', and "
            "their structures differ.",
            ("model", "fingerprint", "structure"),
        )
    most, least = settings.max_changed, settings.min_overlap
    if most is not None and not most.allows(found.changed, found.modules):
        yield finding(
            "HLS801",
            f"{found.changed:,} of {found.modules:,} modules are trained differently from the "
            f"baseline; at most {most.text} may be.",
            ("modules",),
        )
    if least is not None and found.overlap is not None and found.overlap < least:
        yield finding(
            "HLS802",
            f"The modules in full overlap with the baseline's by {found.overlap:.3g}, less than "
            f"{least:g}.",
            ("modules",),
        )
    if settings.min_tau is None:
        return
    if found.tau is None:
        mine, other = plan.score.name, baseline.score.name
        why = (
            f"this plan is ordered by {mine}, the baseline by {other}"
            if mine != other
            else "they have too few scores that differ"
        )
        yield finding(
            "HLS805", f"The order cannot be compared with the baseline's: {why}.", ("score",)
        )
    elif found.tau < settings.min_tau:
        yield finding(
            "HLS803",
            f"The scores agree with the baseline's by a Kendall tau of {found.tau:.3g}, less than "
            f"{settings.min_tau:g}.",
            ("score", "name"),
        )
