"""Whether the choice of a plan would come back on other draws of its probes."""

from __future__ import annotations

from collections.abc import Iterator

from hlscore.artifacts.plan import Plan
from hlscore.checks.findings import Finding
from hlscore.checks.rules import Rule
from hlscore.planning.sums import BORDERLINE as BETWEEN
from hlscore.settings import CheckSettings

SELECTION = Rule(
    code="HLS601",
    name="chosen again",
    asks="Every module in full is chosen in enough resamples of the probes.",
    why="Other probes of the same data would choose another module.",
    remedy="Rank again with more probes (--samples), or give the module LoRA.",
    when="--min-selection-probability",
)
BORDERLINE = Rule(
    code="HLS602",
    name="few borderline modules",
    asks="Few modules are chosen in more than 10 % and less than 90 % of the resamples.",
    why="The choice among them is a matter of luck.",
    remedy="Rank again with more probes (--samples), or choose a budget between two groups.",
    when="--max-borderline",
)
NO_STABILITY = Rule(
    code="HLS603",
    name="stability is known",
    asks="The plan says how often resamples choose each module.",
    why="Without it the choice cannot be distinguished from noise.",
    remedy="Rank with --bootstrap above 0, and plan at the rank and score of that run.",
    when="--min-selection-probability or --max-borderline",
)

RULES = (SELECTION, BORDERLINE, NO_STABILITY)


def check_stability(plan: Plan, settings: CheckSettings) -> Iterator[Finding]:
    """Hold the selection probabilities of a plan against what is asked.

    Yields:
        Modules in full below the one, and that there are more than the other.
    """
    least, most = settings.min_selection_probability, settings.max_borderline
    shares = [item.selection_probability for item in plan.modules]
    if all(share is None for share in shares):
        yield NO_STABILITY.finding(
            "The plan does not say how often resamples choose its modules.", ("stability",)
        )
        return
    if least is not None:
        for place, item in enumerate(plan.modules):
            share = item.selection_probability
            if item.mode == "full" and not item.locked and (share is None or share < least):
                said = "unknown" if share is None else f"{share:.3g}"
                yield SELECTION.finding(
                    f"'{item.module}' is trained in full with a selection probability of {said}, "
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
