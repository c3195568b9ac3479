"""Scores of a weight from its singular values alone.

Notation: `s_1 >= ... >= s_d` are the singular values of one matrix, `d` its short side. Of a stack
of experts every score is the mean over the matrices, and is missing where one matrix has none.
Values below the rounding of float64, `max side * 2^-52 * s_1`, count as zero: so a matrix that is
singular on paper is singular here too, whatever the library that decomposed it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hlscore.records import WeightStatistics

Values = NDArray[np.float64]

NOT_THERE = "its weight cannot be read as numbers"
NOT_FINITE = "its weight holds NaN or infinity"
NO_CONVERGENCE = "the decomposition of its weight did not converge"
ZEROS = "a weight of zeros has no spectrum"
NO_NOISE = "snr is infinite: no singular value lies below the threshold"
SINGULAR = "its weight is singular: the condition number is infinite"

_NORMAL_IQR = 1.349
_SMALLEST = 1e-12


def weight_statistics(
    values: Values, sides: tuple[int, int], ranks: Sequence[int]
) -> WeightStatistics:
    """Score one weight.

    Args:
        values: Singular values of each matrix, the largest first, float64 [matrices, d].
        sides: The two sizes of a matrix, in any order.
    """
    norm = float(np.sqrt((values**2).sum()))
    rounding = max(sides) * np.finfo(np.float64).eps * values[:, :1]
    values = np.where(values > rounding, values, 0.0)
    if not values[:, 0].all():
        return WeightStatistics(weight_norm=norm, remark=_remark(ZEROS, values[:, 0] == 0))
    signal, noise = above_and_below(values, sides)
    singular = values[:, -1] == 0
    snr = None if not noise.all() else float((signal / noise / values[:, 0]).mean())
    condition = None if singular.any() else float((values[:, 0] / values[:, -1]).mean())
    remarks = (_remark(NO_NOISE, noise == 0), _remark(SINGULAR, singular))
    return WeightStatistics(
        weight_norm=norm,
        snr=snr,
        inverse_condition=0.0 if condition is None else 1 / condition,
        condition_number=condition,
        spectral_curve=spectral_curve(values, ranks),
        remark="; ".join(text for text in remarks if text),
    )


def above_and_below(values: Values, sides: tuple[int, int]) -> tuple[Values, Values]:
    """Sum the singular values above and below the threshold of Spectrum.

    The threshold is `sigma (1 + sqrt(min side / max side))`, the largest singular value of noise
    by Marchenko and Pastur; `sigma = IQR(s) / 1.349` is taken from the singular values themselves.

    Args:
        values: Singular values, float64 [matrices, d].
        sides: The two sizes of a matrix, in any order.

    Returns:
        Both sums, float64 [matrices].
    """
    low, high = np.percentile(values, (25, 75), axis=-1, keepdims=True)
    threshold = (high - low) / _NORMAL_IQR * (1 + np.sqrt(min(sides) / max(sides)))
    above = values > threshold
    return np.where(above, values, 0.0).sum(-1), np.where(above, 0.0, values).sum(-1)


def spectral_curve(values: Values, ranks: Sequence[int]) -> tuple[float, ...]:
    """Score of spectral hybrid LoRA at several LoRA ranks.

    `0.3 erank / d + 0.3 (1 - cov_r) + 0.02 ln(1 + kappa) + 0.2 / mean |diff ln s|`: `erank` is
    `exp(entropy(s / sum s))`, `cov_r` the share of the energy in the r largest values. As in
    twinkle, values, the smallest denominator and the mean difference count as at least 1e-12.

    Args:
        values: Singular values, not all zero, float64 [matrices, d].
    """
    held = np.maximum(values, _SMALLEST)
    shares = held / held.sum(-1, keepdims=True)
    effective = np.exp(-(shares * np.log(shares)).sum(-1))
    steps = np.abs(np.diff(np.log(held), axis=-1))
    decay = steps.mean(-1) if steps.shape[-1] else np.full(len(values), np.inf)
    fixed = (
        0.3 * effective / values.shape[-1]
        + 0.02 * np.log1p(values[:, 0] / held[:, -1])
        + 0.2 / np.maximum(decay, _SMALLEST)
    )
    energies = values**2
    total = np.maximum(energies.sum(-1), _SMALLEST)
    covered = [energies[:, :rank].sum(-1) / total for rank in ranks]
    return tuple(float((fixed + 0.3 * (1 - share)).mean()) for share in covered)


def _remark(text: str, where: NDArray[np.bool_]) -> str:
    count = int(where.sum())
    if not count:
        return ""
    return text if count == len(where) else f"{text} ({count} of {len(where)} experts)"
