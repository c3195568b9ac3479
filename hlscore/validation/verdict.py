"""What the trial says, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from hlscore.validation.arms import FULL, LARGEST, LORA, MATCHED, PLAN, RANDOM
from hlscore.validation.gaps import ArmResult, Interval

FEW_SEEDS = 5
# An adapter starts at zero, so that in the first steps it lags behind whatever its rank.
FEW_STEPS = 20
_RIVALS = {
    MATCHED: "LoRA of equal size",
    RANDOM: "a random choice",
    LARGEST: "the largest modules",
}
_DIVERGED = "diverged with a seed that the learning rates were not chosen on"


def verdict(
    found: Mapping[str, ArmResult],
    *,
    seeds: int,
    steps: int,
    untrained: float,
    objective: str = "sft",
    unsettled: Collection[str] = (),
) -> tuple[str, ...]:
    """What the trial shows of the plan, and what it does not, the most important first.

    Args:
        seeds: Trainings of each arm.
        untrained: Loss of the untrained model, nats per token.
        objective: The loss that the plan was made for.
        unsettled: Arms whose best learning rate is the last one that was tried.
    """
    lines = []
    if objective not in ("sft", "none"):
        lines.append(
            f"The plan was made for {objective}, and these trainings are SFT: they say nothing "
            f"about {objective}."
        )
    early = ""
    if steps < FEW_STEPS:
        early = f"{steps} steps are too few to tell. Give more --steps."
    elif not any(result.loss.value < untrained for result in found.values()):
        early = (
            f"no arm does better than the untrained model ({untrained:.4f} nats per token), so "
            "this compares harm, not learning. Give more --steps, or data that the model does not "
            "know."
        )
    if early:
        lines.append(f"No verdict: {early}")
    elif {LORA, PLAN, FULL} & set(unsettled):
        lines.append(
            f"No verdict on the gap: the best learning rate of {', '.join(unsettled)} is the last "
            "one that was tried, so a better one may lie beyond. Try other --steps."
        )
    else:
        lines.append(_main(found))
    for rival, label in {**_RIVALS, MATCHED: "LoRA with as many trained parameters"}.items():
        ahead = found[PLAN].better_than[rival] if rival in found else None
        if ahead is None or (early and math.isfinite(ahead.value)):
            continue
        if not math.isfinite(ahead.value):
            lines.append(f"The plan or {label} {_DIVERGED}: they cannot be compared.")
        elif {PLAN, rival} & set(unsettled):
            lines.append(f"Plan and {label}: no verdict, for the best rate is the last one tried.")
        elif ahead.low > 0:
            lines.append(f"The plan is better than {label}, by {_nats(ahead)}.")
        elif ahead.high < 0:
            behind = Interval(value=-ahead.value, low=-ahead.high, high=-ahead.low)
            advice = "train that instead" if rival == MATCHED else "its score chose badly here"
            lines.append(f"The plan is worse than {label}, by {_nats(behind)}: {advice}.")
        else:
            lines.append(
                f"Whether the plan is better than {label} is not settled: {_nats(ahead)} ahead."
            )
    if seeds < FEW_SEEDS:
        lines.append(
            f"{seeds} seeds are few: an interval over so few is too narrow. Use --seeds 5 or more "
            "before money depends on it."
        )
    return tuple(lines)


def _main(found: Mapping[str, ArmResult]) -> str:
    plan = found[PLAN]
    if FULL not in found:
        return (
            f"Full fine-tuning was left out, so no gap is known: the plan gains "
            f"{_nats(plan.gain)} over LoRA of its rank."
        )
    if not math.isfinite(found[FULL].gain.value):
        return f"LoRA or full fine-tuning {_DIVERGED}, so no gap is known."
    if plan.recovered is None:
        return (
            "LoRA does not lag behind full fine-tuning here, within the error: "
            f"{_nats(found[FULL].gain)} between them. There is nothing for a plan to recover."
        )
    others = [
        f"{label} {_percent(share)}"
        for name, label in _RIVALS.items()
        if name in found
        and (share := found[name].recovered) is not None
        and math.isfinite(share.value)
    ]
    return (
        f"The plan recovers {_percent(plan.recovered)} of the gap between LoRA and full "
        f"fine-tuning; {', '.join(others)}."
    )


def _percent(share: Interval) -> str:
    return f"{100 * share.value:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _nats(figure: Interval) -> str:
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}] nats per token"
