"""From what was captured of one module to its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hlscore.gradients.jackknife import influences
from hlscore.gradients.resampling import Resamples
from hlscore.gradients.sign_step import sign_step_curve
from hlscore.gradients.sketch import seeded_generator, short_first
from hlscore.gradients.sketch_spectrum import estimate, refined_estimate
from hlscore.gradients.sketched import Sketches
from hlscore.gradients.spectrum import (
    HalfSpectra,
    alike_spectra,
    chooses_full,
    effective_rank,
    full_half_spectra,
    full_spectrum,
    randomized_half_spectra,
    randomized_spectrum,
    rank_for_share,
)
from hlscore.records import Estimate, GradientStatistics

_SHARE, _LARGER_SHARE = 0.9, 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """How gradients become statistics, the same for every module of a run.

    Attributes:
        rank: LoRA rank compared against.
        ranks: Ranks of the tail curves.
        counts: What the sum of each half is divided by.
        svd: `auto`, `full` or `randomized`.
        of_gradients: Whether gradients are reduced: only these have a first step of Adam and a
            sensitivity. Otherwise updates are.
    """

    rank: int
    ranks: tuple[int, ...]
    counts: tuple[int, int]
    svd: str
    seed: int
    resamples: Resamples | None
    of_gradients: bool = True

    @property
    def first_share(self) -> float:
        """Share of the first half in what the sum is divided by."""
        return self.counts[0] / sum(self.counts)


def reduce_gradients(
    first: torch.Tensor,
    second: torch.Tensor,
    weight: torch.Tensor | float,
    groups: torch.Tensor | None,
    reduction: Reduction,
    *,
    name: str = "",
) -> GradientStatistics:
    """Compute the statistics of one module from its gradients.

    Args:
        first: Mean gradient of the first half, float32 [E, p, q].
        second: Mean gradient of the second half, float32 [E, p, q].
        weight: The weight, any floating dtype, [p, q] or [E, p, q]; of updates `||W||_F` will do.
        groups: Group sketches, float32 [g, e, p', k], or `None`.
    """
    spectra = half_spectra(first, second, reduction)
    mean, ranks = spectra.mean, reduction.ranks
    energy = float(mean.total.sum())
    tails = tuple(mean.tail(rank) for rank in ranks)
    hls = tuple(spectra.cross_fitted_tail(rank) for rank in ranks)
    at = ranks.index(reduction.rank)
    left_over: tuple[float, ...] = ()
    if isinstance(weight, float):
        norm, taylor, taylor_mean = weight, None, None
    else:
        gradient = torch.lerp(second, first, reduction.first_share)
        if reduction.of_gradients:
            left_over = sign_step_curve(
                _with_float64(gradient), ranks, method=reduction.svd, seed=reduction.seed
            )
        values = weight.detach().to(gradient.device).reshape(gradient.shape).float()
        product = gradient.mul_(values)
        norm = float(torch.linalg.vector_norm(values))
        taylor = float(torch.linalg.vector_norm(product))
        taylor_mean = float(product.abs_().mean())
    rank_for_90 = rank_for_share(mean, _SHARE)
    scores = (
        Estimate(hls[at], spectra.cross_fitted_error(reduction.rank)),
        Estimate(tails[at], mean.head_error(reduction.rank)),
        Estimate(energy),
    )
    return GradientStatistics(
        grad_energy=Estimate(energy),
        top_energy=Estimate(float(mean.head(1)), mean.head_error(1)),
        tail_curve=tails,
        tail_errors=tuple(mean.head_error(rank) for rank in ranks),
        hls_curve=hls,
        hls_errors=tuple(spectra.cross_fitted_error(rank) for rank in ranks),
        rank_for_90=None if rank_for_90 is None else Estimate(rank_for_90),
        rank_for_99=rank_for_share(mean, _LARGER_SHARE),
        effective_rank=effective_rank(mean),
        halves_norm=float((spectra.first.total.sum() * spectra.second.total.sum()).sqrt()),
        weight_norm=norm,
        taylor=taylor if reduction.of_gradients else None,
        taylor_mean=taylor_mean if reduction.of_gradients else None,
        l1_adam_curve=left_over,
        matrices_reached=int((mean.total > 0).sum()),
        **_replicates(groups, reduction, scores, min(first.shape[-2:]), name),
    )


def reduce_sketches(
    captured: Sketches,
    weight_norm: float | None,
    groups: torch.Tensor | None,
    reduction: Reduction,
    *,
    name: str = "",
) -> GradientStatistics:
    """Compute the statistics of one module from its sketches.

    Statistics of single entries of the gradient (`taylor`, `l1_adam`) and of its whole spectrum
    (`effective_rank`) cannot be had from a sketch.

    Args:
        weight_norm: `||W||_F`, or `None` where the weight cannot be had.
        groups: Group sketches, float32 [g, e, p, k], or `None`.
    """
    first, second = _with_float64(captured.first), _with_float64(captured.second)
    share, ranks, refined = reduction.first_share, reduction.ranks, captured.refined
    if refined is None:
        found = estimate(first, second, first_share=share, ranks=ranks, exact=captured.exact)
    else:
        inside, outside = refined.inside, refined.outside
        found = refined_estimate(
            (_with_float64(inside[0]), _with_float64(inside[1])),
            (_with_float64(outside[0]), _with_float64(outside[1])),
            first_share=share,
            ranks=ranks,
        )
    at = reduction.ranks.index(reduction.rank)
    tails, hls = found.tails.tolist(), found.cross_fitted.tolist()
    scores = (
        Estimate(hls[0][at], hls[1][at]),
        Estimate(tails[0][at], tails[1][at]),
        Estimate(*found.energy),
    )
    return GradientStatistics(
        grad_energy=Estimate(*found.energy),
        top_energy=Estimate(*found.top),
        tail_curve=tuple(tails[0]),
        tail_errors=tuple(tails[1]),
        hls_curve=tuple(hls[0]),
        hls_errors=tuple(hls[1]),
        rank_for_90=None if found.rank_for_90 is None else Estimate(*found.rank_for_90),
        rank_for_99=None,
        effective_rank=None,
        halves_norm=_norm(captured.first) * _norm(captured.second),
        weight_norm=weight_norm,
        taylor=None,
        taylor_mean=None,
        matrices_reached=found.matrices_reached,
        **_replicates(groups, reduction, scores, captured.first.shape[-2], name),
    )


def unreached(weight_norm: float | None, reduction: Reduction) -> GradientStatistics:
    """Statistics of a module whose gradient is zero."""
    zeros = (0.0,) * len(reduction.ranks)
    drawn = (0.0,) * (0 if reduction.resamples is None else reduction.resamples.count)
    return GradientStatistics(
        grad_energy=Estimate(0.0),
        top_energy=Estimate(0.0),
        tail_curve=zeros,
        tail_errors=zeros,
        hls_curve=zeros,
        hls_errors=zeros,
        rank_for_90=None,
        effective_rank=None,
        halves_norm=0.0,
        weight_norm=weight_norm,
        taylor=0.0 if reduction.of_gradients else None,
        taylor_mean=0.0 if reduction.of_gradients else None,
        l1_adam_curve=zeros if reduction.of_gradients else (),
        matrices_reached=0,
        hls_replicates=drawn,
        tail_replicates=drawn,
        grad_norm_replicates=drawn,
    )


def half_spectra(first: torch.Tensor, second: torch.Tensor, reduction: Reduction) -> HalfSpectra:
    """Decompose both halves, completely or for their leading part.

    Args:
        first: Mean gradient of the first half, float32 [E, p, q].
        second: Mean gradient of the second half, float32 [E, p, q]; the same tensor where there
            is one only.
    """
    share, vectors = reduction.first_share, max(reduction.ranks)
    if first is second:
        matrix = short_first(_with_float64(first))
        full = chooses_full(matrix.shape[-2], vectors, reduction.svd)
        return alike_spectra(
            full_spectrum(matrix.double() @ matrix.double().mT, vectors=False)
            if full
            else randomized_spectrum(matrix, vectors, seed=reduction.seed)
        )
    a, b = (short_first(_with_float64(half)) for half in (first, second))
    if chooses_full(a.shape[-2], vectors, reduction.svd):
        return full_half_spectra(a, b, first_share=share)
    return randomized_half_spectra(a, b, first_share=share, vectors=vectors, seed=reduction.seed)


def _norm(values: torch.Tensor) -> float:
    return float(
        torch.linalg.vector_norm(values.double() if values.device.type != "mps" else values)
    )


def _with_float64(values: torch.Tensor) -> torch.Tensor:
    """Where float64 can be had: Apple GPUs have none."""
    return values.cpu() if values.device.type == "mps" else values


def _replicates(
    groups: torch.Tensor | None,
    reduction: Reduction,
    scores: tuple[Estimate, Estimate, Estimate],
    short_side: int,
    name: str,
) -> dict[str, tuple[float, ...]]:
    """Resampled `hls`, `tail` and `grad_norm`; empty without group sketches.

    Replicates vary with the probes and, as far as a score is an estimate, with its error too.
    """
    names = ("hls_replicates", "tail_replicates", "grad_norm_replicates")
    resamples = reduction.resamples
    if resamples is None or groups is None:
        return dict.fromkeys(names, ())
    rank, energy = min(reduction.rank, groups.shape[-1]), scores[2].value
    # On the host: a GPU decomposes few small matrices more slowly.
    found = influences(groups.cpu(), resamples.first_counts, resamples.second_counts, rank)
    # Group sketches hold a sample of the experts only; for others the energies are alike.
    if found.energy > 0:
        found = found.scaled(energy / found.energy)
    generator = seeded_generator(f"{reduction.seed}:{name}")
    noise = torch.randn(resamples.count, generator=generator, dtype=torch.float64)
    drawn = {}
    for key, score, influence in zip(
        names, scores, (found.hls, found.tail, found.grad_norm), strict=True
    ):
        varied = resamples.replicates(score.value, influence) + score.error * noise
        drawn[key] = tuple(varied.float().tolist())
    if reduction.rank >= short_side:  # no tail is left to draw, but the energy still varies
        drawn |= dict.fromkeys(names[:2], (0.0,) * resamples.count)
    return drawn


def curve_ranks(
    rank: int, largest: int | None = None, *, also: Sequence[int] = ()
) -> tuple[int, ...]:
    """Ranks of a run's tail curves: 0 (the whole energy), 1, 2, 4, ..., its rank and others.

    Args:
        largest: Largest power of two; `None` means at least 64 and twice the rank.
        also: Ranks that a plan may choose from.
    """
    limit = max(64, 2 * rank) if largest is None else largest
    powers: Sequence[int] = [2**i for i in range(limit.bit_length()) if 2**i <= limit]
    return tuple(sorted({0, *powers, rank, *also}))
