"""From what was captured of one module to its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hlscore.gradients.jackknife import Resamples, influences
from hlscore.gradients.sign_step import sign_step_curve
from hlscore.gradients.sketch import seeded_generator, with_float64
from hlscore.gradients.sketch_tails import estimate, refined_estimate
from hlscore.gradients.sketched import Sketches
from hlscore.gradients.tails import TailEstimates, half_spectra
from hlscore.records import Estimate, GradientStatistics


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
    halves: tuple[torch.Tensor, torch.Tensor] | None,
    weight: torch.Tensor | float,
    groups: torch.Tensor | None,
    reduction: Reduction,
    *,
    name: str = "",
) -> GradientStatistics:
    """Compute the statistics of one module from its gradients.

    Args:
        halves: Mean gradients of both halves, float32 [E, p, q] each, the same tensor twice where
            there is only one; `None` where nothing reached the module.
        weight: The weight, any floating dtype, [p, q] or [E, p, q]; of updates `||W||_F` will do.
        groups: Group sketches, float32 [g, e, p', k], or `None`.
    """
    if halves is None:
        if not isinstance(weight, float):
            weight = float(torch.linalg.vector_norm(weight.detach().float()))
        return _unreached(weight, reduction)
    first = with_float64(halves[0])
    second = first if halves[0] is halves[1] else with_float64(halves[1])
    ranks = reduction.ranks
    spectra = half_spectra(
        first,
        second,
        first_share=reduction.first_share,
        vectors=max(ranks),
        method=reduction.svd,
        seed=reduction.seed,
    )
    taylor = taylor_mean = None
    left_over: tuple[float, ...] = ()
    norm = weight if isinstance(weight, float) else 0.0
    if not isinstance(weight, float):
        gradient = torch.lerp(halves[1], halves[0], reduction.first_share)
        if reduction.of_gradients:
            left_over = sign_step_curve(
                with_float64(gradient), ranks, method=reduction.svd, seed=reduction.seed
            )
        values = weight.detach().to(gradient.device).reshape(gradient.shape).float()
        norm = float(torch.linalg.vector_norm(values))
        if reduction.of_gradients:
            product = gradient.mul_(values)
            taylor = float(torch.linalg.vector_norm(product))
            taylor_mean = float(product.abs_().mean())
    return _statistics(
        spectra.estimates(ranks),
        groups,
        reduction,
        name,
        max_rank=min(first.shape[-2:]),
        halves_norm=float((spectra.first.total.sum() * spectra.second.total.sum()).sqrt()),
        weight_norm=norm,
        taylor=taylor,
        taylor_mean=taylor_mean,
        l1_adam_curve=left_over,
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
        captured: Its sketches; `None` where nothing reached the module.
        weight_norm: `||W||_F`, or `None` where the weight cannot be read.
        groups: Group sketches, float32 [g, e, p, k], or `None`.
    """
    if captured is None:
        return _unreached(weight_norm, reduction)
    first, second = with_float64(captured.first), with_float64(captured.second)
    share, ranks, refined = reduction.first_share, reduction.ranks, captured.refined
    if refined is None:
        found = estimate(first, second, first_share=share, ranks=ranks, exact=captured.exact)
    else:
        inside, outside = (
            (with_float64(pair[0]), with_float64(pair[1]))
            for pair in (refined.inside, refined.outside)
        )
        found = refined_estimate(inside, outside, first_share=share, ranks=ranks)
    norms = [float(torch.linalg.vector_norm(half.double())) for half in (first, second)]
    return _statistics(
        found,
        groups,
        reduction,
        name,
        max_rank=first.shape[-2],
        halves_norm=norms[0] * norms[1],
        weight_norm=weight_norm,
    )


def _unreached(weight_norm: float | None, reduction: Reduction) -> GradientStatistics:
    """Statistics of a module whose gradient is zero."""
    nothing = torch.zeros(2, len(reduction.ranks), dtype=torch.float64)
    found = TailEstimates(
        energy=Estimate(0.0),
        top=Estimate(0.0),
        tails=nothing,
        cross_fitted=nothing,
        rank_for_90=None,
        matrices_reached=0,
    )
    zero = 0.0 if reduction.of_gradients else None
    return _statistics(
        found,
        None,
        reduction,
        "",
        max_rank=0,
        halves_norm=0.0,
        weight_norm=weight_norm,
        taylor=zero,
        taylor_mean=zero,
        l1_adam_curve=(0.0,) * len(reduction.ranks) if reduction.of_gradients else (),
    )


def _statistics(
    found: TailEstimates,
    groups: torch.Tensor | None,
    reduction: Reduction,
    name: str,
    *,
    max_rank: int,
    halves_norm: float,
    weight_norm: float | None,
    taylor: float | None = None,
    taylor_mean: float | None = None,
    l1_adam_curve: tuple[float, ...] = (),
) -> GradientStatistics:
    """The statistics of one module, with resampled scores where there are resamples.

    Replicates vary with the probes and, as far as a score is an estimate, with its error too.
    """
    tails, hls = found.tails.tolist(), found.cross_fitted.tolist()
    at, resamples = reduction.ranks.index(reduction.rank), reduction.resamples
    replicates: list[tuple[float, ...]] = [(), (), ()]
    if resamples is not None:
        replicates = [(0.0,) * len(resamples.first)] * 3
    if resamples is not None and groups is not None:
        # On the host: a GPU decomposes few small matrices more slowly.
        influence = influences(
            groups.cpu(),
            resamples.first_counts,
            resamples.second_counts,
            min(reduction.rank, groups.shape[-1]),
        )
        # Group sketches hold a sample of the experts only; those of the others are similar.
        scale = found.energy.value / influence.energy if influence.energy > 0 else 1.0
        generator = seeded_generator(f"{reduction.seed}:{name}")
        noise = torch.randn(len(resamples.first), generator=generator, dtype=torch.float64)
        for place, (value, error, change) in enumerate(
            (
                (hls[0][at], hls[1][at], influence.hls),
                (tails[0][at], tails[1][at], influence.tail),
                (found.energy.value, found.energy.error, influence.grad_norm),
            )
        ):
            # No tail is left to draw at full rank, but the energy still varies.
            if place == 2 or reduction.rank < max_rank:
                drawn = resamples.replicates(value, change * scale) + error * noise
                replicates[place] = tuple(drawn.float().tolist())
    return GradientStatistics(
        grad_energy=found.energy,
        top_energy=found.top,
        tail_curve=tuple(tails[0]),
        tail_errors=tuple(tails[1]),
        hls_curve=tuple(hls[0]),
        hls_errors=tuple(hls[1]),
        rank_for_90=found.rank_for_90,
        rank_for_99=found.rank_for_99,
        effective_rank=found.effective_rank,
        halves_norm=halves_norm,
        weight_norm=weight_norm,
        taylor=taylor,
        taylor_mean=taylor_mean,
        l1_adam_curve=l1_adam_curve,
        matrices_reached=found.matrices_reached,
        hls_replicates=replicates[0],
        tail_replicates=replicates[1],
        grad_norm_replicates=replicates[2],
    )


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
