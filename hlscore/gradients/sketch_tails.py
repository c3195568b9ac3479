"""Tails and cross-fitted tails from sketches, each with its estimated error.

With `Y_A = A Omega / sqrt(k)` and `Y_B` likewise, [E, m, k], everything follows from the k x k Gram
matrices `Y_A^T Y_A`, `Y_B^T Y_B`, `Y_A^T Y_B`. The r leading vectors of a sketch follow the
sketch's own noise and take a share of about r/k of the tail with them, so tails are divided by
`1 - r/k`. That still understates them. What lies outside vectors that were found without the
columns it is measured on overstates the tail, and the estimate lies a quarter of the way from the
first to the second; for the cross-fitted tail the second is the worse one, so that the first is
kept. After more than one pass, what lies in the span that was multiplied with is known, and only
the rest is estimated.

The error after one pass has two parts, both from blocks of columns left out: the jackknife
spread, and a quarter of the gap between the two. Measured biases and errors:
`benchmarks/fidelity.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hlscore.gradients.tails import ROUNDING, TailEstimates
from hlscore.records import Estimate

BLOCKS = 8
_GAP_SHARE = 0.25
_TAIL_SHARE = 0.25
# A GPU decomposes a single small matrix more slowly than the host does.
_ENOUGH_FOR_DEVICE = 8


@dataclass(frozen=True, slots=True)
class SketchGrams:
    """`Y_A^T Y_A`, `Y_B^T Y_B`, `Y_A^T Y_B` and `Y^T Y` of the mean gradient, float64 [E, k, k]."""

    first: torch.Tensor
    second: torch.Tensor
    cross: torch.Tensor
    mean: torch.Tensor

    def part(self, rows: torch.Tensor, columns: torch.Tensor) -> SketchGrams:
        """Rows and columns of all matrices."""
        parts = (self.first, self.second, self.cross, self.mean)
        return SketchGrams(*(gram[:, rows][:, :, columns] for gram in parts))


def estimate(
    first: torch.Tensor,
    second: torch.Tensor,
    *,
    first_share: float,
    ranks: Sequence[int],
    exact: bool,
) -> TailEstimates:
    """Estimate energies and tails from the sketches of one pass.

    Args:
        first: `Y_A`, float32 [E, m, k].
        second: `Y_B`, float32 [E, m, k].
        first_share: Share of the counted tokens in the first half.
        ranks: LoRA ranks r, rising, below k unless `exact`.
    """
    if exact and first.shape[-2] < first.shape[-1]:  # the smaller Gram matrices hold the same
        first, second = first.mT, second.mT
    grams = _grams(first, second, first_share)
    size = grams.first.shape[-1]
    whole = _tail_curves(grams, _decompose(grams), full_size=size, exact=exact)
    at = torch.tensor([min(rank, size) for rank in ranks])
    energy = whole[0, 0]
    errors = torch.zeros_like(whole)
    rank_error = 0.0
    if not exact:
        whole, errors, rank_error = _from_blocks(grams, whole)
        columns = grams.mean.diagonal(dim1=-2, dim2=-1).sum(0)
        errors[0, 0] = columns.std() * size**0.5
    return _collect(whole, errors, at, float(energy), rank_error, grams.mean, exact=exact)


def refined_estimate(
    inside: tuple[torch.Tensor, torch.Tensor],
    outside: tuple[torch.Tensor, torch.Tensor],
    *,
    first_share: float,
    ranks: Sequence[int],
) -> TailEstimates:
    """Estimate energies and tails from gradients whose leading part is known.

    What lies in the span that further passes multiplied with counts exactly; only what is outside
    is estimated, from columns that the span was not found on (as in Hutch++, arXiv 2010.09649).

    Args:
        inside: A and B in the span, float32 [E, l, w] each.
        outside: Sketches of what is outside, float32 [E, m, c] each.
        first_share: Share of the counted tokens in the first half.

    Returns:
        The estimates. Leading vectors are sought in the span alone, which overstates tails a
        little; errors hold only what the sketch of the rest adds.
    """
    grams = _grams(inside[0].mT, inside[1].mT, first_share)
    size = grams.first.shape[-1]
    a, b = outside[0].double(), outside[1].double()
    mean = first_share * a + (1 - first_share) * b
    rest = torch.stack(((mean * mean).sum((0, 1)), (a * b).sum((0, 1)))).to(grams.first.device)
    curves = _tail_curves(grams, _decompose(grams), full_size=size, exact=True)
    curves = curves + rest.sum(-1, keepdim=True)
    error = rest.std(-1, keepdim=True) * rest.shape[-1] ** 0.5
    at = torch.tensor([min(rank, size) for rank in ranks])
    errors = error.expand_as(curves)
    return _collect(curves, errors, at, float(curves[0, 0]), 0.0, grams.mean, exact=False)


def _grams(first: torch.Tensor, second: torch.Tensor, share: float) -> SketchGrams:
    a, b = first.double(), second.double()
    own_a, own_b, cross, w = a.mT @ a, b.mT @ b, a.mT @ b, share
    mean = w * w * own_a + (1 - w) * (1 - w) * own_b + w * (1 - w) * (cross + cross.mT)
    grams = [own_a, own_b, cross, mean]
    if a.shape[0] < _ENOUGH_FOR_DEVICE:
        grams = [gram.cpu() for gram in grams]
    return SketchGrams(*grams)


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Eigenvalues and eigenvectors of a Gram matrix, the largest first, [E, k] and [E, k, k]."""

    values: torch.Tensor
    vectors: torch.Tensor

    def inside(self, cross: torch.Tensor) -> torch.Tensor:
        """`sum_{i<=r} v_i^T C v_i` for r = 0 .. k, summed over matrices, [k + 1]."""
        inside = (self.vectors * (cross @ self.vectors)).sum(-2)
        return _from_zero(inside.cumsum(-1).sum(0), last=False)

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
        return _from_zero(inside.cumsum(-1).sum(0), last=False)


# Gram matrices of the first half, the second half and the mean, each decomposed once.
_Decomposed = tuple[_Vectors, _Vectors, _Vectors]


def _decompose(grams: SketchGrams) -> _Decomposed:
    return (
        _eigenvectors(grams.first),
        _eigenvectors(grams.second),
        _eigenvectors(grams.mean),
    )


def _eigenvectors(gram: torch.Tensor) -> _Vectors:
    values, vectors = torch.linalg.eigh(gram)
    return _Vectors(values.flip(-1).clamp(min=0), vectors.flip(-1))


def _tail_curves(
    grams: SketchGrams, parts: _Decomposed, *, full_size: int, exact: bool
) -> torch.Tensor:
    """`T_r` and `S_r` for r = 0 .. k from k of `full_size` columns, float64 [2, k + 1]."""
    size, (first, second, mean) = grams.first.shape[-1], parts
    smallest_first = mean.values.flip(-1)
    tails = _from_zero(smallest_first.cumsum(-1).flip(-1).sum(0), last=True)
    inside = first.inside(grams.cross) + second.inside(grams.cross)
    curves = torch.stack((tails, _trace(grams.cross).sum() - inside / 2)) * (full_size / size)
    # `1 - r/k` for r = 0 .. k, but not below 1/k.
    shares = 1 - torch.arange(size + 1, dtype=torch.float64) / size
    return curves if exact else curves / shares.clamp(min=1 / size).to(curves)


def _from_blocks(
    grams: SketchGrams, whole: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Corrected curves, their errors, and the error of the rank for 90 % of the energy."""
    size = grams.first.shape[-1]
    blocks = min(BLOCKS, size)
    numbers = torch.arange(size, device=grams.first.device) * blocks // size
    parts, unseen = [], torch.zeros_like(whole)
    for block in range(blocks):
        out, kept = (numbers == block).nonzero()[:, 0], (numbers != block).nonzero()[:, 0]
        inner = grams.part(kept, kept)
        vectors = _decompose(inner)
        curves = _tail_curves(inner, vectors, full_size=size, exact=False)
        parts.append(_longer(curves, size + 1))
        unseen += _longer(_unseen_curves(vectors, grams, kept, out), size + 1)
    drawn = torch.stack(parts)
    spread = drawn.std(0, correction=0) * (len(parts) - 1) ** 0.5
    ranks = torch.tensor([_rank_for_share(part[0], size) or size // 2 for part in drawn]).double()
    rank_error = float(ranks.std(correction=0)) * (len(parts) - 1) ** 0.5
    gap = unseen - whole
    values = torch.stack((whole[0] + _TAIL_SHARE * gap[0], whole[1]))
    return values, (spread**2 + (_GAP_SHARE * gap) ** 2).sqrt(), rank_error


def _longer(curves: torch.Tensor, length: int) -> torch.Tensor:
    """Repeat the last value up to a length: [2, n] gives [2, length]."""
    return torch.cat((curves, curves[:, -1:].expand(-1, length - curves.shape[-1])), dim=-1)


def _unseen_curves(
    vectors: _Decomposed, grams: SketchGrams, kept: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """What is outside subspaces of some columns in the others, for r = 0 .. k', [2, k' + 1]."""
    across, outer = grams.part(kept, out), grams.part(out, out)
    turned = grams.cross[:, out][:, :, kept].mT  # of the second half's K with the first half's O
    first, second, mean = vectors
    tails = _trace(outer.mean).sum() - mean.inside_unseen(across.mean, across.mean)
    inside = first.inside_unseen(across.first, across.cross)
    inside = inside + second.inside_unseen(turned, across.second)
    return torch.stack((tails, _trace(outer.cross).sum() - inside / 2))


def _collect(
    curves: torch.Tensor,
    errors: torch.Tensor,
    at: torch.Tensor,
    energy: float,
    rank_error: float,
    mean: torch.Tensor,
    *,
    exact: bool,
) -> TailEstimates:
    size = mean.shape[-1]
    floor = ROUNDING * energy
    tails = torch.where(curves[0] > floor, curves[0], 0.0)
    rank = _rank_for_share(tails, size if exact else size // 2)
    one = min(1, len(tails) - 1)
    at = at.to(curves.device)
    return TailEstimates(
        energy=Estimate(energy, float(errors[0, 0])),
        # What is inside follows the noise of the whole energy, which a small tail does not.
        top=Estimate(energy - float(tails[one]), float(errors[0, : one + 1].norm())),
        tails=torch.stack((tails[at], errors[0, at])).cpu(),
        cross_fitted=torch.stack((curves[1, at], errors[1, at])).cpu(),
        rank_for_90=None if rank is None else Estimate(rank, rank_error),
        matrices_reached=int((mean.diagonal(dim1=-2, dim2=-1).sum(-1) > 0).sum()),
    )


def _rank_for_share(tails: torch.Tensor, largest: int) -> int | None:
    """Smallest rank up to `largest` that leaves at most a tenth of the energy outside."""
    enough = tails[: largest + 1] <= 0.1 * tails[0] * (1 + 1e-12)
    if float(tails[0]) <= 0 or not bool(enough.any()):
        return None
    return int(enough.to(torch.int8).argmax())


def _from_zero(values: torch.Tensor, *, last: bool) -> torch.Tensor:
    """Put the value of rank 0, or that of the full rank, which is zero, at its place: [k + 1]."""
    zero = values.new_zeros(1)
    return torch.cat((values, zero)) if last else torch.cat((zero, values))


def _trace(matrices: torch.Tensor) -> torch.Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
