"""How far scores follow single probe groups: pure functions of tensors.

Every score is computed again without each group, leading subspaces included (Tukey's
jackknife). For the cross-fitted tail, a product of two noisy halves, leaving groups out of one
half at a time counts the product of both noises twice; leaving out pairs, one group of each
half, shows how large that product is, and it is taken off once (Efron and Stein 1981; the two
halves are crossed random effects).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_CHUNK_NUMBERS = 2**25
# Each half's influences hold its own noise and the product of both, so that the product is at
# most half of their sum; its estimate is noisy and often larger.
_LEAST_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Influence:
    """What each group of both halves does to a score, scaled so that squares sum to its variance.

    float64 [groups of the half] each.
    """

    first: torch.Tensor
    second: torch.Tensor

    @property
    def variance(self) -> float:
        """Variance of the score over probe sets of the same size."""
        return float((self.first**2).sum() + (self.second**2).sum())

    def scaled(self, factor: float) -> Influence:
        """The same influences times a factor."""
        return Influence(first=self.first * factor, second=self.second * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Influences:
    """Influences of the groups on the scores of one module, at one energy of the mean gradient."""

    hls: Influence
    tail: Influence
    grad_norm: Influence
    energy: float

    def scaled(self, factor: float) -> Influences:
        """The same influences times a factor."""
        return Influences(
            hls=self.hls.scaled(factor),
            tail=self.tail.scaled(factor),
            grad_norm=self.grad_norm.scaled(factor),
            energy=self.energy * factor,
        )


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
        pairs += _cross_fitted_tails(first, second, rank).double().cpu()
        means += _mean_energies(part, torch.cat(counts), rank).double().cpu()
        energy += float((part.sum(0) / torch.cat(counts).sum()).square().sum())
    scale = float(unit.double().cpu() / mean_count) ** 2
    return Influences(
        hls=_without_shared_noise(pairs * scale),
        tail=_by_half(_scaled(means[0] * scale), halves),
        grad_norm=_by_half(_scaled(means[1] * scale), halves),
        energy=energy * scale,
    )


def _without(groups: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mean of all groups, then the means without each: [g, E, p, k] gives [g + 1, E, p, k]."""
    total = groups.sum(0, keepdim=True)
    others = (total - groups) / (counts.sum() - counts)[:, None, None, None]
    return torch.cat((total / counts.sum(), others))


def _cross_fitted_tails(first: torch.Tensor, second: torch.Tensor, rank: int) -> torch.Tensor:
    """`S_r` of every mean of the first half with every one of the second: [a, b]."""
    cross = torch.einsum("aemk,beml->abekl", first, second)
    left, right = _leading(first, rank), _leading(second, rank)
    inside = torch.einsum("aeki,abekl,aeli->ab", left, cross, left)
    inside = inside + torch.einsum("beki,abekl,beli->ab", right, cross, right)
    found: torch.Tensor = cross.diagonal(dim1=-2, dim2=-1).sum((-2, -1)) - inside / 2
    return found


def _leading(matrices: torch.Tensor, rank: int) -> torch.Tensor:
    """Leading right singular vectors, [..., k, r]."""
    vectors: torch.Tensor = torch.linalg.eigh(matrices.mT @ matrices).eigenvectors
    return vectors[..., -rank:]


def _mean_energies(groups: torch.Tensor, counts: torch.Tensor, rank: int) -> torch.Tensor:
    """Tail and whole energy of the mean gradient without each group: [2, g]."""
    means = _without(groups, counts)[1:]
    energies = torch.linalg.eigvalsh(means.mT @ means).clamp(min=0)
    tail: torch.Tensor = energies[..., : energies.shape[-1] - rank].sum((-2, -1))
    return torch.stack((tail, energies.sum((-2, -1))))


def _by_half(found: torch.Tensor, halves: int) -> Influence:
    return Influence(first=found[:halves], second=found[halves:])


def _scaled(values: torch.Tensor) -> torch.Tensor:
    """Jackknife values as influences: their squares sum to the jackknife variance."""
    count = len(values)
    return (values.mean() - values) * math.sqrt((count - 1) / count)


def _without_shared_noise(pairs: torch.Tensor) -> Influence:
    """Influences on a product of halves from its values [a + 1, b + 1] without pairs of groups."""
    first, second = _scaled(pairs[1:, 0]), _scaled(pairs[0, 1:])
    twice = float((first**2).sum() + (second**2).sum())
    inner = pairs[1:, 1:]
    mixed = inner - inner.mean(0) - inner.mean(1, keepdim=True) + inner.mean()
    a, b = inner.shape
    shared = float((mixed**2).sum()) * (a - 1) * (b - 1) / (a * b)
    share = max(1 - shared / twice, _LEAST_SHARE) if twice > 0 else 1.0
    return Influence(first=first * share**0.5, second=second * share**0.5)
