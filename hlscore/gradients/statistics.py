"""From two half gradients to the statistics of one module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hlscore.gradients.bootstrap import Resamples, centred_replicates, draw_scores
from hlscore.gradients.sketch import short_first
from hlscore.gradients.spectrum import (
    HalfSpectra,
    chooses_full,
    effective_rank,
    full_half_spectra,
    randomized_half_spectra,
    rank_for_share,
)
from hlscore.records import GradientStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """How gradients become statistics, the same for every module of a run.

    Attributes:
        rank: LoRA rank compared against.
        ranks: Ranks of the tail curves.
        tokens: Counted tokens of each half.
        svd: `auto`, `full` or `randomized`.
        seed: Seed of the subspace iterations.
        resamples: Bootstrap draws, or `None`.
    """

    rank: int
    ranks: tuple[int, ...]
    tokens: tuple[int, int]
    svd: str
    seed: int
    resamples: Resamples | None


def reduce_gradients(
    first: torch.Tensor,
    second: torch.Tensor,
    weight: torch.Tensor,
    groups: torch.Tensor | None,
    reduction: Reduction,
) -> GradientStatistics:
    """Compute the statistics of one module.

    Args:
        first: Mean gradient of the first half, float32 [E, p, q].
        second: Mean gradient of the second half, float32 [E, p, q].
        weight: The weight, any floating dtype, [p, q] or [E, p, q].
        groups: Group sketches, float32 [g, E, min(p, q), k], or `None`.
        reduction: How.

    Returns:
        The statistics.
    """
    share = reduction.tokens[0] / sum(reduction.tokens)
    norm, taylor, taylor_mean = _weight_terms(first, second, weight, share)
    spectra = half_spectra(first, second, share, reduction)
    mean = spectra.mean
    hls = spectra.cross_fitted_tail(reduction.rank)
    tail = mean.tail(reduction.rank)
    energy = float(mean.total.sum())
    replicates = _replicates(spectra, groups, reduction, hls=hls, tail=tail, energy=energy)
    return GradientStatistics(
        grad_energy=energy,
        top_energy=float(mean.head(1)),
        tail_curve=tuple(mean.tail(rank) for rank in reduction.ranks),
        hls_curve=tuple(spectra.cross_fitted_tail(rank) for rank in reduction.ranks),
        head_error=mean.head_error(reduction.rank),
        rank_for_90=rank_for_share(mean, 0.9),
        effective_rank=effective_rank(mean),
        weight_norm=norm,
        taylor=taylor,
        taylor_mean=taylor_mean,
        matrices_reached=int((mean.total > 0).sum()),
        hls_replicates=replicates[0],
        tail_replicates=replicates[1],
        grad_norm_replicates=replicates[2],
    )


def half_spectra(
    first: torch.Tensor, second: torch.Tensor, share: float, reduction: Reduction
) -> HalfSpectra:
    """Decompose both halves, completely or for their leading part.

    Args:
        first: Mean gradient of the first half, float32 [E, p, q].
        second: Mean gradient of the second half, float32 [E, p, q].
        share: Share of the counted tokens in the first half.
        reduction: How.

    Returns:
        The spectra.
    """
    a, b = short_first(first), short_first(second)
    if a.device.type == "mps":  # has no float64
        a, b = a.cpu(), b.cpu()
    vectors = max(reduction.ranks)
    if chooses_full(a.shape[-2], vectors, reduction.svd):
        return full_half_spectra(a, b, first_share=share)
    return randomized_half_spectra(a, b, first_share=share, vectors=vectors, seed=reduction.seed)


def _weight_terms(
    first: torch.Tensor, second: torch.Tensor, weight: torch.Tensor, share: float
) -> tuple[float, float, float]:
    """`||W||_F`, `||W * G||_F` and the mean of `|W * G|`."""
    values = weight.detach().reshape(first.shape).float()
    product = torch.lerp(second, first, share).mul_(values)
    return (
        float(torch.linalg.vector_norm(values)),
        float(torch.linalg.vector_norm(product)),
        float(product.abs_().mean()),
    )


def _replicates(
    spectra: HalfSpectra,
    groups: torch.Tensor | None,
    reduction: Reduction,
    *,
    hls: float,
    tail: float,
    energy: float,
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    resamples = reduction.resamples
    if resamples is None or groups is None:
        return (), (), ()
    # Beyond the short side there is no tail to draw, but the energy still varies.
    spanned = reduction.rank >= groups.shape[-2]
    rank = min(reduction.rank, groups.shape[-2])
    drawn = draw_scores(groups.to(spectra.overlap.device), resamples, rank)
    if spanned:
        zero = (0.0,) * resamples.first.shape[0]
        return zero, zero, _floats(centred_replicates(drawn.grad_norm, energy))
    return (
        _floats(centred_replicates(drawn.hls, hls)),
        _floats(centred_replicates(drawn.tail, tail)),
        _floats(centred_replicates(drawn.grad_norm, energy)),
    )


def _floats(values: torch.Tensor) -> tuple[float, ...]:
    numbers: Sequence[float] = values.float().tolist()
    return tuple(numbers)
