"""From the losses of a study to gaps, intervals and agreement with the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import kendalltau

RESAMPLES = 4000
CONFIDENCE = 0.95

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure with its 95 % bootstrap interval over seeds and test examples."""

    value: float  # the figure
    low: float  # lower end
    high: float  # upper end
    resamples: np.ndarray  # resampled figures, for averages over tasks

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def losses(entry: Entry) -> np.ndarray:
    """Test losses at the end [seeds, examples], the same examples for all arms."""
    return np.array([trial["losses"] for trial in entry["trials"]])


def gap_recovered(arm: Entry, lora: Entry, full: Entry, *, seed: int = 0) -> Figure:
    """Share of the gap between LoRA and full fine-tuning: (LoRA - arm) / (LoRA - full)."""
    found = [_resampled(losses(entry), seed) for entry in (arm, lora, full)]
    return _figure([(b - a) / (b - c) for a, b, c in zip(*found, strict=True)])


def gap(lora: Entry, full: Entry, *, seed: int = 0) -> Figure:
    """What LoRA lacks of full fine-tuning, in nats per counted token."""
    found = [_resampled(losses(entry), seed) for entry in (lora, full)]
    return _figure([a - b for a, b in zip(*found, strict=True)])


def against(arm: Entry, other: np.ndarray, *, seed: int = 0) -> Figure:
    """Logarithm of an arm's loss over another one's: below 0 is better."""
    found = [_resampled(item, seed) for item in (losses(arm), other)]
    return _figure([np.log(a / b) for a, b in zip(*found, strict=True)])


def percent(value: float, low: float, high: float) -> str:
    """The logarithm of a ratio and its interval as a change in percent."""
    digits = 0 if np.expm1(np.abs([low, high])).max() > 0.1 else 1
    said = [f"{100 * np.expm1(x):+.{digits}f}" for x in (value, low, high)]
    return f"{said[0]} % [{said[1]}, {said[2]}]"


def lora_of_size(uniform: Sequence[Entry], parameters: float) -> np.ndarray:
    """Losses [seeds, examples] of LoRA with so many parameters, between the two nearest ranks.

    Interpolated over the logarithm of the number of trained parameters, within the smallest and the
    largest rank of `uniform`, LoRA of one rank each.
    """
    ordered = sorted(uniform, key=lambda entry: entry["parameters"])
    sizes = np.log([entry["parameters"] for entry in ordered])
    place = float(np.interp(np.log(parameters), sizes, np.arange(len(sizes))))
    below = min(int(place), len(ordered) - 2)
    share = place - below
    return (1 - share) * losses(ordered[below]) + share * losses(ordered[below + 1])


def mean(figures: Sequence[Figure]) -> Figure:
    """Average over tasks, each resampled on its own."""
    rows = [np.roll(figure.resamples, place) for place, figure in enumerate(figures)]
    stacked = np.stack(rows).mean(axis=0)
    value = float(np.mean([figure.value for figure in figures]))
    return Figure(value=value, low=_end(stacked, 0), high=_end(stacked, 1), resamples=stacked)


def pooled(draws: Sequence[Entry]) -> Entry:
    """Several random draws as one arm: their mean loss, seed by seed."""
    stacked = np.stack([losses(entry) for entry in draws]).mean(axis=0)
    sizes = [entry["parameters"] for entry in draws]
    return {"trials": [{"losses": row} for row in stacked], "parameters": float(np.mean(sizes))}


def self_agreement(gains: Mapping[str, Sequence[float]]) -> float:
    """Mean Kendall tau between the oracle of each two seeds."""
    table = np.array(list(gains.values()))
    pairs = combinations(range(table.shape[1]), 2)
    return float(np.mean([kendalltau(table[:, a], table[:, b]).statistic for a, b in pairs]))


def agreement(oracle: Entry, score: str, *, per_parameter: bool, within_kind: bool) -> float | None:
    """Kendall tau of a score with the oracle's mean gain.

    Args:
        per_parameter: Divide both by the module's parameters.
        within_kind: The mean over kinds of module of tau within each.

    Returns:
        Tau, or `None` where it is not defined.
    """
    modules = list(oracle["gains"])
    sizes = {name: oracle["scores"][name]["n_params"] if per_parameter else 1 for name in modules}
    x = {name: oracle["scores"][name][score] for name in modules}
    if any(value is None for value in x.values()):
        return None
    x = {name: x[name] / sizes[name] for name in modules}
    y = {name: np.mean(oracle["gains"][name]) / sizes[name] for name in modules}
    kinds = oracle["kinds"]
    groups = [modules]
    if within_kind:
        groups = [[n for n in modules if kinds[n] == kind] for kind in sorted(set(kinds.values()))]
    taus = [
        kendalltau([x[n] for n in group], [y[n] for n in group]).statistic
        for group in groups
        if len(group) > 2
    ]
    known = [tau for tau in taus if not np.isnan(tau)]
    return float(np.mean(known)) if known else None


def _resampled(table: np.ndarray, seed: int) -> np.ndarray:
    """Means of resamples over seeds and examples, the first of the table itself."""
    rng = np.random.default_rng(seed)
    seeds, examples = table.shape
    means = [table.mean()]
    for _ in range(RESAMPLES):
        rows = rng.integers(seeds, size=seeds)
        weights = np.bincount(rng.integers(examples, size=examples), minlength=examples)
        means.append(float(table[rows].mean(axis=0) @ weights) / examples)
    return np.array(means)


def _figure(values: Sequence[float]) -> Figure:
    found = np.array(values)
    return Figure(value=float(found[0]), low=_end(found[1:], 0), high=_end(found[1:], 1),
                  resamples=found[1:])  # fmt: skip


def _end(values: np.ndarray, side: int) -> float:
    tail = (1 - CONFIDENCE) / 2
    return float(np.quantile(values, (tail, 1 - tail)[side]))
