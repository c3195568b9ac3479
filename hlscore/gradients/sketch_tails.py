"""Tails and cross-fitted tails from sketches, each with its estimated error.

With `Y_A = A Omega / sqrt(k)` and `Y_B` likewise, [E, m, k], everything follows from the k x k Gram
matrices `Y_A^T Y_A`, `Y_B^T Y_B`, `Y_A^T Y_B`. The r leading vectors of a sketch follow the
sketch's own noise and take a share of about r/k of the tail with them, so tails are divided by
`1 - r/k`. That still understates them. What lies outside vectors that were found without the
columns it is measured on overstates the tail, and the estimate lies a quarter of the way from the
first to the second; for the cross-fitted tail the second is the worse one, so that the first is
kept.

The error has two parts, both from blocks of columns left out: the jackknife
spread, and a quarter of the gap between the two. Measured biases and errors:
`benchmarks/fidelity.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional

from hlscore.gradients.tails import ROUNDING
from hlscore.records import Estimate, GradientStatistics

BLOCKS = 8
_GAP_SHARE = 0.25
_TAIL_SHARE = 0.25
# A GPU decomposes a single small matrix more slowly than the host does.
_ENOUGH_FOR_DEVICE = 8


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Eigenvalues and eigenvectors of a Gram matrix, the largest first, [E, k] and [E, k, k]."""

    values: torch.Tensor
    vectors: torch.Tensor

    def inside(self, cross: torch.Tensor) -> torch.Tensor:
        """`sum_{i<=r} v_i^T C v_i` for r = 0 .. k, summed over matrices, [k + 1]."""
        inside = (self.vectors * (cross @ self.vectors)).sum(-2)
        return functional.pad(inside.cumsum(-1).sum(0), (1, 0))

    def inside_unseen(self, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """`<U_r^T Y_1, U_r^T Y_2>` of columns that the leading left vectors U_r were not found on.

        Args:
            own: Products of the columns that U was found on with those of `Y_1`, [E, k, l].
            other: Products of those with the columns of `Y_2`, [E, k, l].

        Returns:
            For r = 0 .. k, summed over matrices, float64 [k + 1].
        """
        # Vectors whose value is rounding span nothing.
        spans = self.values > ROUNDING * self.values[:, :1]
        inverse = torch.where(spans, 1 / self.values.clamp(min=1e-300), 0.0)
        turned = self.vectors.mT
        inside = ((turned @ own) * (turned @ other)).sum(-1) * inverse
        return functional.pad(inside.cumsum(-1).sum(0), (1, 0))


class _Grams:
    """`Y_A^T Y_A`, `Y_B^T Y_B`, `Y_A^T Y_B` and `Y^T Y` of the mean gradient, float64 [E, k, k]."""

    def __init__(self, *grams: torch.Tensor) -> None:
        self.first, self.second, self.cross, self.mean = grams
        self.size = self.mean.shape[-1]

    @classmethod
    def of(cls, first: torch.Tensor, second: torch.Tensor, first_share: float) -> _Grams:
        """Those of the sketches of both halves, [E, m, k]."""
        a, b, w = first.double(), second.double(), first_share
        own_a, own_b, cross = a.mT @ a, b.mT @ b, a.mT @ b
        mean = w * w * own_a + (1 - w) * (1 - w) * own_b + w * (1 - w) * (cross + cross.mT)
        grams = own_a, own_b, cross, mean
        return cls(*(gram.cpu() for gram in grams) if a.shape[0] < _ENOUGH_FOR_DEVICE else grams)

    def part(self, rows: torch.Tensor, columns: torch.Tensor) -> _Grams:
        """Rows and columns of all matrices."""
        parts = (self.first, self.second, self.cross, self.mean)
        return _Grams(*(gram[:, rows][:, :, columns] for gram in parts))

    @cached_property
    def vectors(self) -> tuple[_Vectors, _Vectors, _Vectors]:
        """Eigenvectors of both halves and of the mean."""
        found = [torch.linalg.eigh(gram) for gram in (self.first, self.second, self.mean)]
        first, second, mean = (
            _Vectors(values.flip(-1).clamp(min=0), vectors.flip(-1)) for values, vectors in found
        )
        return first, second, mean

    def tails(self, full_size: int, *, exact: bool) -> torch.Tensor:
        """`T_r` and `S_r` for r = 0 .. k from k of `full_size` columns, float64 [2, k + 1]."""
        first, second, mean = self.vectors
        smallest_first = mean.values.flip(-1)
        tails = functional.pad(smallest_first.cumsum(-1).flip(-1).sum(0), (0, 1))
        inside = first.inside(self.cross) + second.inside(self.cross)
        curves = torch.stack((tails, _trace(self.cross).sum() - inside / 2))
        curves = curves * (full_size / self.size)
        # `1 - r/k` for r = 0 .. k, but not below 1/k.
        shares = 1 - torch.arange(self.size + 1, dtype=torch.float64) / self.size
        return curves if exact else curves / shares.clamp(min=1 / self.size).to(curves)


def estimate(
    first: torch.Tensor,
    second: torch.Tensor,
    *,
    first_share: float,
    ranks: Sequence[int],
    exact: bool,
) -> GradientStatistics:
    """Estimate energies and tails from sketches.

    Args:
        first: `Y_A`, float32 [E, m, k]; `second` is `Y_B`.
        ranks: LoRA ranks r, rising, below k unless `exact`.
    """
    if exact and first.shape[-2] < first.shape[-1]:  # the smaller Gram matrices hold the same
        first, second = first.mT, second.mT
    grams = _Grams.of(first, second, first_share)
    curves = grams.tails(grams.size, exact=exact)
    energy, errors, rank_error = float(curves[0, 0]), torch.zeros_like(curves), 0.0
    if not exact:
        curves, errors, rank_error = _from_blocks(grams, curves)
        columns = grams.mean.diagonal(dim1=-2, dim2=-1).sum(0)
        errors[0, 0] = columns.std() * grams.size**0.5
    return _statistics(grams, curves, errors, ranks, energy, rank_error, exact=exact)


def _from_blocks(grams: _Grams, whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Corrected curves, their errors, and the error of the rank for 90 % of the energy."""
    size, blocks = grams.size, min(BLOCKS, grams.size)
    numbers = torch.arange(size, device=grams.first.device) * blocks // size
    parts, unseen = [], torch.zeros_like(whole)

    def longer(curves: torch.Tensor) -> torch.Tensor:
        """Repeat the last value up to the length of the whole curves."""
        return torch.cat((curves, curves[:, -1:].expand(-1, size + 1 - curves.shape[-1])), dim=-1)

    for block in range(blocks):
        out, kept = (numbers == block).nonzero()[:, 0], (numbers != block).nonzero()[:, 0]
        inner, across, outer = grams.part(kept, kept), grams.part(kept, out), grams.part(out, out)
        parts.append(longer(inner.tails(size, exact=False)))
        # What is outside the subspaces of the kept columns in the others.
        first, second, mean = inner.vectors
        turned = grams.cross[:, out][:, :, kept].mT  # of the second half's K with the first's O
        tails = _trace(outer.mean).sum() - mean.inside_unseen(across.mean, across.mean)
        inside = first.inside_unseen(across.first, across.cross)
        inside = inside + second.inside_unseen(turned, across.second)
        unseen += longer(torch.stack((tails, _trace(outer.cross).sum() - inside / 2)))
    drawn = torch.stack(parts)
    spread = drawn.std(0, correction=0) * (len(parts) - 1) ** 0.5
    ranks = torch.tensor([_rank_for_90(part[0], size) or size // 2 for part in drawn]).double()
    rank_error = float(ranks.std(correction=0)) * (len(parts) - 1) ** 0.5
    gap = unseen - whole
    values = torch.stack((whole[0] + _TAIL_SHARE * gap[0], whole[1]))
    return values, (spread**2 + (_GAP_SHARE * gap) ** 2).sqrt(), rank_error


def _statistics(
    grams: _Grams,
    curves: torch.Tensor,
    errors: torch.Tensor,
    ranks: Sequence[int],
    energy: float,
    rank_error: float,
    *,
    exact: bool,
) -> GradientStatistics:
    tails = torch.where(curves[0] > ROUNDING * energy, curves[0], 0.0)
    rank_for_90 = _rank_for_90(tails, grams.size if exact else grams.size // 2)
    one = min(1, len(tails) - 1)
    at = torch.tensor([min(rank, grams.size) for rank in ranks], device=curves.device)
    return GradientStatistics(
        grad_energy=Estimate(energy, float(errors[0, 0])),
        # What is inside follows the noise of the whole energy, which a small tail does not.
        top_energy=Estimate(energy - float(tails[one]), float(errors[0, : one + 1].norm())),
        tail_curve=tuple(tails[at].tolist()),
        tail_errors=tuple(errors[0, at].tolist()),
        hls_curve=tuple(curves[1, at].tolist()),
        hls_errors=tuple(errors[1, at].tolist()),
        rank_for_90=None if rank_for_90 is None else Estimate(rank_for_90, rank_error),
        matrices_reached=int((_trace(grams.mean) > 0).sum()),
    )


def _rank_for_90(tails: torch.Tensor, largest: int) -> int | None:
    """Smallest rank up to `largest` that leaves at most a tenth of the energy outside."""
    enough = tails[: largest + 1] <= 0.1 * tails[0] * (1 + 1e-12)
    if float(tails[0]) <= 0 or not bool(enough.any()):
        return None
    return int(enough.to(torch.int8).argmax())


def _trace(matrices: torch.Tensor) -> torch.Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
