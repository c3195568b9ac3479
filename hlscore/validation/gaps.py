"""Gaps between arms, with intervals over seeds and test examples, and what they say of the plan."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hlscore.scores.rows import INTERVAL
from hlscore.validation.arms import FULL, LARGEST, LAST, LORA, MATCHED, PLAN, RANDOM, RSLORA

RESAMPLES = 4000
FEW_SEEDS = 5
# An adapter starts at zero, so that in the first steps it lags behind whatever its rank.
FEW_STEPS = 20
_RIVALS = {
    MATCHED: "LoRA of equal size", RSLORA: "rsLoRA of equal size", RANDOM: "a random choice",
    LARGEST: "the largest modules", LAST: "the largest modules of the last layers",
}  # fmt: skip
# What to train instead of the plan, where it is better.
_ADAPTERS_ONLY = {
    MATCHED: "LoRA with as many trained parameters",
    RSLORA: "rsLoRA with as many trained parameters",
}
_DIVERGED = "diverged with a seed that the learning rates were not chosen on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure with its 95 % confidence interval from `low` to `high`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """How an arm did."""

    loss: Interval  # test loss at the end, nats per counted token
    gain: Interval  # LoRA's loss minus the arm's, nats per counted token
    # Share of the gap between LoRA and full fine-tuning; `None` where there is no gap above zero or
    # full fine-tuning was left out.
    recovered: Interval | None
    better_than: Mapping[str, Interval]  # loss of each other arm minus this one's


def compare_arms(
    sums: Mapping[str, Sequence[Sequence[float]]], counts: Sequence[int], *, seed: int
) -> dict[str, ArmResult]:
    """How each arm did; arms were trained with the same seeds and tested on the same examples.

    Seeds and test examples are resampled together, the same ones for every arm.

    Args:
        sums: Loss of each test example in nats, by arm [seeds, examples].
        counts: Counted tokens of each test example.
        seed: Seed of the resampling.
    """
    tables = {name: np.array(table) for name, table in sums.items()}
    seeds, examples = next(iter(tables.values())).shape
    tokens = np.array(counts, dtype=np.float64)
    # Loss per counted token of each arm, of all data first and then of the resamples.
    drawn: dict[str, list[float]] = {name: [] for name in tables}
    rng = np.random.default_rng(seed)
    rows: NDArray[Any] = np.arange(seeds)
    weights = np.ones(examples)
    for _ in range(1 + RESAMPLES):
        total = float(tokens @ weights) * seeds
        for name, table in tables.items():
            drawn[name].append(float(table[rows].sum(axis=0) @ weights) / total)
        rows = rng.integers(seeds, size=(seeds,))
        places = rng.integers(examples, size=examples)
        weights = np.bincount(places, minlength=examples).astype(np.float64)
    losses = {name: np.array(values) for name, values in drawn.items()}
    gap = losses[LORA] - losses[FULL] if FULL in losses else None
    if gap is not None and not _interval(gap).low > 0:
        gap = None
    return {
        name: ArmResult(
            loss=_interval(own),
            gain=_interval(losses[LORA] - own),
            recovered=None if gap is None else _interval((losses[LORA] - own) / gap),
            better_than={
                other: _interval(theirs - own) for other, theirs in losses.items() if other != name
            },
        )
        for name, own in losses.items()
    }


def _interval(values: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values[1:], INTERVAL)
    return Interval(value=float(values[0]), low=float(low), high=float(high))


def verdict(
    found: Mapping[str, ArmResult],
    *,
    seeds: int,
    steps: int,
    untrained: float,
    objective: str = "sft",
    unsettled: Collection[str] = (),
) -> tuple[str, ...]:
    """What the trainings show of the plan, and what they do not, the most important first.

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
    for rival, label in (_RIVALS | _ADAPTERS_ONLY).items():
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
            instead = rival in _ADAPTERS_ONLY
            advice = "train that instead" if instead else "its score chose badly here"
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
    if not math.isfinite(plan.recovered.value):
        return f"The plan {_DIVERGED}, so it recovers nothing that can be told."
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
