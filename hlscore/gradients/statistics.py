"""From what was captured of one module to its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from hlscore.gradients.jackknife import Resamples, influences
from hlscore.gradients.sketch import seeded_generator, with_float64
from hlscore.gradients.sketch_tails import estimate
from hlscore.gradients.sketched import Sketches
from hlscore.gradients.tails import gradient_tails, sign_step_curve
from hlscore.records import GradientStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """How gradients become statistics, the same for every module of a run."""

    rank: int
    ranks: tuple[int, ...]
    counts: tuple[int, int]  # what the sum of each half is divided by
    svd: str
    seed: int
    resamples: Resamples | None


def reduce_gradients(
    halves: tuple[torch.Tensor, torch.Tensor] | None,
    weight_norm: float | None,
    groups: torch.Tensor | None,
    reduction: Reduction,
    *,
    weight: torch.Tensor | None = None,
    name: str = "",
) -> GradientStatistics:
    """Compute the statistics of one module from its gradients or updates.

    Args:
        halves: Mean gradients of both halves, float32 [E, p, q] each, the same tensor twice where
            there is only one; `None` where nothing reached the module.
        groups: Group sketches, float32 [g, e, p', k], or `None`.
        weight: The weight, any floating dtype, [p, q] or [E, p, q], for its sensitivity and for
            the first step of Adam; `None` for updates, which have neither.
    """
    if halves is None:
        halves = 2 * (torch.zeros(1, 1, 1),)
        weight = weight if weight is None else torch.zeros(1, 1, 1)
        groups = None
    first = with_float64(halves[0])
    second = first if halves[0] is halves[1] else with_float64(halves[1])
    share, ranks = reduction.counts[0] / sum(reduction.counts), reduction.ranks
    method, seed = reduction.svd, reduction.seed
    found = gradient_tails(first, second, first_share=share, ranks=ranks, method=method, seed=seed)
    found = _resampled(found, groups, reduction, name, max_rank=min(first.shape[-2:]))
    if weight is None:
        return replace(found, weight_norm=weight_norm)
    gradient = torch.lerp(halves[1], halves[0], share)
    left_over = sign_step_curve(with_float64(gradient), ranks, method=method, seed=seed)
    product = gradient.mul_(weight.detach().to(gradient.device).reshape(gradient.shape).float())
    return replace(
        found,
        weight_norm=weight_norm,
        l1_adam_curve=left_over,
        taylor=float(torch.linalg.vector_norm(product)),
        taylor_mean=float(product.abs_().mean()),
    )


def reduce_sketches(
    captured: Sketches | None,
    weight_norm: float | None,
    groups: torch.Tensor | None,
    reduction: Reduction,
    *,
    name: str = "",
) -> GradientStatistics:
    """Compute the statistics of one module from its sketches.

    Statistics of single entries of the gradient (`taylor`, `l1_adam`) and of its whole spectrum
    (`effective_rank`) need the gradient itself.

    Args:
        groups: Group sketches, float32 [g, e, p, k], or `None`.
    """
    if captured is None:
        return reduce_gradients(None, weight_norm, None, reduction)
    first, second = (with_float64(half) for half in captured.halves)
    share, ranks = reduction.counts[0] / sum(reduction.counts), reduction.ranks
    found = estimate(first, second, first_share=share, ranks=ranks, exact=captured.exact)
    norms = [float(torch.linalg.vector_norm(half.double())) for half in (first, second)]
    found = replace(found, halves_norm=norms[0] * norms[1], weight_norm=weight_norm)
    return _resampled(found, groups, reduction, name, max_rank=first.shape[-2])


def _resampled(
    found: GradientStatistics,
    groups: torch.Tensor | None,
    reduction: Reduction,
    name: str,
    *,
    max_rank: int,
) -> GradientStatistics:
    """Statistics with resampled scores, where there are resamples.

    Replicates vary with the probes and, as far as a score is an estimate, with its error too.
    """
    resamples, at = reduction.resamples, reduction.ranks.index(reduction.rank)
    if resamples is None:
        return found
    replicates = [(0.0,) * len(resamples.first)] * 3
    if groups is not None:
        # On the host: a GPU decomposes few small matrices more slowly.
        rank = min(reduction.rank, groups.shape[-1])
        influence = influences(groups.cpu(), resamples.first_counts, resamples.second_counts, rank)
        # Group sketches hold a sample of the experts only; those of the others are similar.
        energy = found.grad_energy
        scale = energy.value / influence.energy if influence.energy > 0 else 1.0
        generator = seeded_generator(f"{reduction.seed}:{name}")
        noise = torch.randn(len(resamples.first), generator=generator, dtype=torch.float64)
        for place, (value, error, change) in enumerate(
            (
                (found.hls_curve[at], found.hls_errors[at], influence.hls),
                (found.tail_curve[at], found.tail_errors[at], influence.tail),
                (energy.value, energy.error, influence.grad_norm),
            )
        ):
            # No tail is left to draw at full rank, but the energy still varies.
            if place == 2 or reduction.rank < max_rank:
                drawn = resamples.replicates(value, change * scale) + error * noise
                replicates[place] = tuple(drawn.float().tolist())
    hls, tail, grad_norm = replicates
    return replace(found, hls_replicates=hls, tail_replicates=tail, grad_norm_replicates=grad_norm)


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
