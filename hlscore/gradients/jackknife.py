"""Standard errors: how far scores follow single probe groups, and resamples made from that.

Every score is computed again without each group, leading subspaces included (Tukey's
jackknife). For the cross-fitted tail, a product of two noisy halves, leaving groups out of one
half at a time counts the product of both noises twice; leaving out pairs, one group of each
half, shows how large that product is, and it is taken off once (Efron and Stein 1981; the two
halves are crossed random effects).

Resamples draw groups with replacement within each half. The draws are the same for every module,
which keeps their dependence and lets a whole choice be repeated per resample: a replicate is the
score plus the influence of every group times how often it was drawn beyond once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_CHUNK_NUMBERS = 2**25
# Each half's influences hold its own noise and the product of both, so that the product is at
# most half of their sum; its estimate is noisy and often larger.
_LEAST_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Influences:
    """What each probe group does to the scores of one module, float64 [groups], first half first.

    Scaled so that squares sum to the variance of a score over probe sets of the same size.
    """

    hls: torch.Tensor
    tail: torch.Tensor
    grad_norm: torch.Tensor
    energy: float  # energy of the mean gradient that they belong to


def influences(
    sketches: torch.Tensor, first_counts: torch.Tensor, second_counts: torch.Tensor, rank: int
) -> Influences:
    """Influences of the groups on scores summed over the E matrices of one module.

    Args:
        sketches: Sketched sums of the groups, first half first, float32 [g, E, p, k].
        first_counts: What each group of the first half adds to the divisor of its mean, float64.
        second_counts: The same of the second half.
    """
    halves = len(first_counts)
    # float32 is ample for differences; scaling keeps small squares normal.
    unit = sketches.abs().amax().clamp(min=1e-30)
    mean_count = float((first_counts.sum() + second_counts.sum()) / sketches.shape[0])
    counts = [(t / mean_count).to(sketches.device, torch.float32) for t in
              (first_counts, second_counts)]  # fmt: skip
    size = sketches.shape[-1]
    step = max(1, _CHUNK_NUMBERS // (sketches.shape[0] * sketches.shape[2] * size + 100 * size**2))
    pairs = torch.zeros(halves + 1, sketches.shape[0] - halves + 1, dtype=torch.float64)
    means = torch.zeros(2, sketches.shape[0], dtype=torch.float64)
    energy = 0.0
    for start in range(0, sketches.shape[1], step):
        part = sketches[:, start : start + step] / unit
        first, second = _without(part[:halves], counts[0]), _without(part[halves:], counts[1])
        # `S_r` of every mean of the first half with every one of the second, from their leading
        # right singular vectors, [..., k, r].
        cross = torch.einsum("aemk,beml->abekl", first, second)
        left = torch.linalg.eigh(first.mT @ first).eigenvectors[..., -rank:]
        right = torch.linalg.eigh(second.mT @ second).eigenvectors[..., -rank:]
        inside = torch.einsum("aeki,abekl,aeli->ab", left, cross, left)
        inside = inside + torch.einsum("beki,abekl,beli->ab", right, cross, right)
        tails = cross.diagonal(dim1=-2, dim2=-1).sum((-2, -1)) - inside / 2
        pairs += tails.double().cpu()
        # Tail and whole energy of the mean gradient without each group.
        mean = _without(part, torch.cat(counts))[1:]
        energies = torch.linalg.eigvalsh(mean.mT @ mean).clamp(min=0)
        tail = energies[..., : size - rank].sum((-2, -1))
        means += torch.stack((tail, energies.sum((-2, -1)))).double().cpu()
        energy += float((part.sum(0) / torch.cat(counts).sum()).square().sum())
    scale = float(unit.double().cpu() / mean_count) ** 2
    pairs, means = pairs * scale, means * scale
    # On the cross-fitted tail, the product of the noise of both halves counts once, not twice.
    of_first, of_second = _scaled(pairs[1:, 0]), _scaled(pairs[0, 1:])
    twice = float((of_first**2).sum() + (of_second**2).sum())
    inner = pairs[1:, 1:]
    mixed = inner - inner.mean(0) - inner.mean(1, keepdim=True) + inner.mean()
    a, b = inner.shape
    shared = float((mixed**2).sum()) * (a - 1) * (b - 1) / (a * b)
    share = max(1 - shared / twice, _LEAST_SHARE) if twice > 0 else 1.0
    return Influences(
        hls=torch.cat((of_first, of_second)) * share**0.5,
        tail=_scaled(means[0]),
        grad_norm=_scaled(means[1]),
        energy=energy * scale,
    )


def _without(groups: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mean of all groups, then the means without each: [g, E, p, k] gives [g + 1, E, p, k]."""
    total = groups.sum(0, keepdim=True)
    others = (total - groups) / (counts.sum() - counts)[:, None, None, None]
    return torch.cat((total / counts.sum(), others))


def _scaled(values: torch.Tensor) -> torch.Tensor:
    """Jackknife values as influences: their squares sum to the jackknife variance."""
    count = len(values)
    return (values.mean() - values) * math.sqrt((count - 1) / count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resamples:
    """How often each group of both halves is drawn, float64 [resamples, groups]."""

    first: torch.Tensor
    second: torch.Tensor
    first_counts: torch.Tensor  # what each group adds to the divisor of its half's mean, float64
    second_counts: torch.Tensor

    def replicates(self, value: float, influence: torch.Tensor) -> torch.Tensor:
        """A score in each resample, float64 [resamples]; the variance is that of the influence."""
        first, second = torch.split(influence, [self.first.shape[1], self.second.shape[1]])
        return value + (self.first - 1) @ first + (self.second - 1) @ second


def draw_resamples(
    first_counts: Sequence[int], second_counts: Sequence[int], *, count: int, seed: int
) -> Resamples | None:
    """Draw groups; `None` where no resamples were asked for or a half has a single group."""
    if count == 0 or min(len(first_counts), len(second_counts)) < 2:
        return None
    generator = np.random.default_rng(seed)
    first, second = (
        torch.from_numpy(generator.multinomial(size, np.full(size, 1 / size), size=count)).double()
        for size in (len(first_counts), len(second_counts))
    )
    return Resamples(
        first=first,
        second=second,
        first_counts=torch.tensor(first_counts, dtype=torch.float64),
        second_counts=torch.tensor(second_counts, dtype=torch.float64),
    )
