"""Singular values of weights and the scores that need nothing else.

Notation: `s_1 >= ... >= s_d` are the singular values of one matrix, `d` its short side. Of a stack
of experts every score is the mean over the matrices, and is missing where one matrix has none.
Values below the rounding of float64, `max side * 2^-52 * s_1`, count as zero, so that a matrix that
is singular on paper is singular here too, whatever the library that decomposed it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hlscore.errors import ModelError
from hlscore.records import Candidate, WeightStatistics

Values = NDArray[np.float64]

_ROWS_PER_STEP = 4
_NORMAL_IQR = 1.349
_SMALLEST = 1e-12


@torch.no_grad()
def measure_weight(
    weight: torch.Tensor | None, item: Candidate, ranks: Sequence[int], device: torch.device
) -> WeightStatistics:
    """Decompose one weight, matrix by matrix, and score it.

    Args:
        weight: The weight, of any floating dtype and on any device; `None` where it cannot be read.
    """
    if weight is None or not bool(torch.isfinite(weight).all()):
        why = "cannot be read as numbers" if weight is None else "holds NaN or infinity"
        return WeightStatistics(remark=f"its weight {why}")
    stack = []
    for matrix in weight.detach().reshape(-1, *weight.shape[-2:]):
        try:
            stack.append(singular_values(matrix, device))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return WeightStatistics(remark="the decomposition of its weight did not converge")
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{device} ran out of memory while it decomposed {item.module}.",
                hint="Use --device cpu, or remove it with --exclude.",
            ) from error
    values, sides = np.stack(stack), (item.out_features, item.in_features)
    norm = float(np.sqrt((values**2).sum()))
    rounding = max(sides) * np.finfo(np.float64).eps * values[:, :1]
    values = np.where(values > rounding, values, 0.0)
    if not values[:, 0].all():
        remark = _remark("a weight of zeros has no spectrum", values[:, 0] == 0)
        return WeightStatistics(weight_norm=norm, remark=remark)
    signal, noise = above_and_below(values, sides)
    singular = values[:, -1] == 0
    snr = None if not noise.all() else float((signal / noise / values[:, 0]).mean())
    condition = None if singular.any() else float((values[:, 0] / values[:, -1]).mean())
    remarks = (
        _remark("snr is infinite: no singular value lies below the threshold", noise == 0),
        _remark("its weight is singular: the condition number is infinite", singular),
    )
    return WeightStatistics(
        weight_norm=norm,
        snr=snr,
        inverse_condition=0.0 if condition is None else 1 / condition,
        condition_number=condition,
        spectral_curve=spectral_curve(values, ranks),
        remark="; ".join(text for text in remarks if text),
    )


def singular_values(matrix: torch.Tensor, device: torch.device) -> Values:
    """All singular values of a matrix, the largest first, float64 [min(p, q)].

    The long side is reduced first, by QR decompositions of a few rows at a time, each stacked
    below the triangle of those before. That keeps every digit that a direct decomposition has,
    unlike the Gram matrix, whose condition number is the square.

    Args:
        matrix: Finite numbers of any floating dtype, [p, q].
        device: Where to compute; Apple GPUs, which have no float64, leave it to the CPU.
    """
    place = torch.device("cpu") if device.type == "mps" else device
    rows = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    short = rows.shape[1]
    square = torch.empty(0, short, dtype=torch.float64, device=place)
    for part in torch.split(rows, _ROWS_PER_STEP * short):
        stacked = torch.cat([square, part.to(device=place, dtype=torch.float64)])
        tall = stacked.shape[0] > short
        square = torch.linalg.qr(stacked, mode="r").R if tall else stacked
    found: Values = torch.linalg.svdvals(square).cpu().numpy()
    return found


def decomposition_bytes(item: Candidate) -> int:
    """Memory that decomposing one matrix takes besides the weight, an estimate."""
    short, long = sorted((item.out_features, item.in_features))
    rows = min(long, _ROWS_PER_STEP * short) + short
    # Stacked rows, the copy that is factored, and what the factorization works with.
    return 8 * 3 * rows * short


def above_and_below(values: Values, sides: tuple[int, int]) -> tuple[Values, Values]:
    """Sums of the singular values [matrices, d] above and below the threshold of Spectrum.

    The threshold is `sigma (1 + sqrt(min side / max side))`, the largest singular value of noise
    by Marchenko and Pastur; `sigma = IQR(s) / 1.349` is taken from the singular values themselves.
    """
    low, high = np.percentile(values, (25, 75), axis=-1, keepdims=True)
    threshold = (high - low) / _NORMAL_IQR * (1 + np.sqrt(min(sides) / max(sides)))
    above = values > threshold
    return np.where(above, values, 0.0).sum(-1), np.where(above, 0.0, values).sum(-1)


def spectral_curve(values: Values, ranks: Sequence[int]) -> tuple[float, ...]:
    """Score of spectral hybrid LoRA at several LoRA ranks, from values [matrices, d].

    `0.3 erank / d + 0.3 (1 - cov_r) + 0.02 ln(1 + kappa) + 0.2 / mean |diff ln s|`: `erank` is
    `exp(entropy(s / sum s))`, `cov_r` the share of the energy in the r largest values. As in
    twinkle, values, the smallest denominator and the mean difference count as at least 1e-12.
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
