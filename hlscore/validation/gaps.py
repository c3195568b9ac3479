"""Gaps between arms, with intervals over seeds and test examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hlscore.validation.arms import FULL, LORA

RESAMPLES = 4000
CONFIDENCE = 0.95


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
    low, high = np.quantile(values[1:], ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Interval(value=float(values[0]), low=float(low), high=float(high))
