"""What a LoRA rank leaves over of mean gradients: pure functions of tensors.

Notation: `A` and `B` are the mean gradients of two independent halves of the probes, `G` that
of all of them. `s_1 >= s_2 >= ...` are singular values, `H_r` the energy of the best rank-r
approximation `P_r` (Eckart-Young), `T_r = ||G||_F^2 - H_r`. The cross-fitted tail, the decrease of
the loss per unit learning rate that rank r cannot reach, in nats, is
`S_r = 1/2 [<A - P_r(A), B> + <B - P_r(B), A>]`.
Matrices come as [E, m, n] with m <= n; energies are summed over the E matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hlscore.gradients.sketch import short_first
from hlscore.records import Estimate, GradientStatistics

OVERSAMPLING = 32
POWER_ITERATIONS = 3
FULL_UP_TO = 512
_CHUNK_NUMBERS = 2**18
# Gradients are float32: a share of the energy as small as this is rounding, reported as zero.
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """Energies and leading left singular vectors of E matrices."""

    energies: torch.Tensor  # squared singular values, largest first, float64 [E, l]
    basis: torch.Tensor  # left singular vectors, float64 or float32 [E, m, l]; may be left out
    total: torch.Tensor  # `||X||_F^2` of each matrix, float64 [E]
    residuals: torch.Tensor  # `||X v - s u||` of each vector, float64 [E, l]; zero when `exact`
    exact: bool  # whether all values are known, or the leading ones by a subspace iteration

    def tail(self, rank: int) -> Estimate:
        """Energy outside the best rank-`rank` part, summed over matrices.

        Exact spectra sum the small values, so that a small tail keeps its digits. Of others, a
        singular value lies within `residual` of each computed one, so the head is off by at
        most `sum (2 s residual + residual^2)`, provided the vectors belong to the leading
        values, and by no more than the tail.
        """
        total, head = self.total.sum(), self.energies[:, :rank].sum()
        outside = self.energies[:, rank:].flip(-1).sum() if self.exact else total - head
        tail = float(outside) if outside > ROUNDING * total else 0.0
        if self.exact:
            return Estimate(tail)
        values, residuals = self.energies[:, :rank].sqrt(), self.residuals[:, :rank]
        bound = (2 * values * residuals + residuals**2).sum()
        return Estimate(tail, float(bound.clamp(max=tail)))

    def rank_for_share(self, share: float) -> int | None:
        """Smallest rank whose head holds a share of the energy; `None` beyond known vectors."""
        total = float(self.total.sum())
        enough = self.energies.sum(0).cumsum(0) >= share * total * (1 - 1e-12)
        if total <= 0 or not bool(enough.any()):
            return None
        return int(enough.to(torch.int8).argmax()) + 1


def chooses_full(short_side: int, vectors: int, method: str) -> bool:
    """Whether a matrix is decomposed completely: always where iterating would find nearly all."""
    if method == "full" or vectors + OVERSAMPLING >= short_side:
        return True
    return method == "auto" and short_side <= FULL_UP_TO


def full_spectrum(gram: torch.Tensor, *, vectors: bool = True) -> Spectrum:
    """Decompose `X X^T`, symmetric, float64 [E, m, m]; without vectors it takes half the time."""
    if vectors:
        values, basis = torch.linalg.eigh(gram)
    else:
        values, basis = torch.linalg.eigvalsh(gram), gram[..., :0]
    energies = values.flip(-1).clamp(min=0)
    return Spectrum(
        energies=energies,
        basis=basis.flip(-1),
        total=gram.diagonal(dim1=-2, dim2=-1).sum(-1),
        residuals=torch.zeros_like(energies),
        exact=True,
    )


def energies_of(matrices: torch.Tensor) -> torch.Tensor:
    """Squared Frobenius norms of [E, m, n], float64 [E], without a copy in float64 of the whole.

    Not finite where an entry is not.
    """
    rows = max(1, _CHUNK_NUMBERS // (matrices.shape[0] * matrices.shape[-1]))
    total = torch.zeros(matrices.shape[0], dtype=torch.float64, device=matrices.device)
    for part in torch.split(matrices, rows, dim=-2):
        total += part.double().square_().sum((-2, -1))
    return total


def randomized_spectrum(matrices: torch.Tensor, vectors: int, *, seed: int) -> Spectrum:
    """The `vectors` + 32 leading singular triples of float32 [E, m, n], with their residuals.

    Found by randomized subspace iteration (Halko, Martinsson, Tropp, arXiv 0909.4061), algorithm
    4.4 with 3 power iterations and 32 extra vectors. Energies are never above the true ones.
    """
    count, _, width = matrices.shape
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(width, vectors + OVERSAMPLING, generator=generator)
    start = start.to(matrices.device).expand(count, -1, -1)
    basis = torch.linalg.qr(matrices @ start).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrices.mT @ basis).Q
        basis = torch.linalg.qr(matrices @ basis).Q
    projected = basis.mT @ matrices
    gram = projected.double() @ projected.double().mT
    values, rotation = torch.linalg.eigh(gram)
    energies, rotation = values.flip(-1).clamp(min=0), rotation.flip(-1)
    left = basis.double() @ rotation
    singular = energies.sqrt()
    right = (projected.mT.double() @ rotation) / singular.clamp(min=1e-300).unsqueeze(-2)
    gap = (matrices @ right.float()).double() - left * singular.unsqueeze(-2)
    return Spectrum(
        energies=energies,
        basis=left,
        total=energies_of(matrices),
        residuals=torch.linalg.vector_norm(gap, dim=-2),
        exact=False,
    )


def gradient_tails(
    first: torch.Tensor,
    second: torch.Tensor,
    *,
    first_share: float,
    ranks: Sequence[int],
    method: str,
    seed: int,
) -> GradientStatistics:
    """Energies and tails of `G`, and the cross-fitted tails of `A` and `B`, at each rank.

    Args:
        first: `A`, float32 [E, p, q].
        second: `B`, float32 [E, p, q]; the same tensor where there is a single gradient, whose
            cross-fitted tail is the plain one.
        first_share: Share of the counted tokens in the first half.
        method: `auto`, `full` (in float64) or `randomized` (only the leading part is found).
    """
    a, b, w = short_first(first), short_first(second), first_share
    single, short, vectors = first is second, a.shape[-2], max(ranks)
    # Of the vectors u of each half: `u^T B A^T u`, and their error.
    inside, errors = [], []
    if chooses_full(short, vectors, method):
        a = a.double()
        gram_a = a @ a.mT
        if single:
            mean = half_a = half_b = full_spectrum(gram_a, vectors=False)
        else:
            # `G` itself is never formed: its Gram matrix follows from those of the halves.
            b = b.double()
            gram_b, cross = b @ b.mT, a @ b.mT
            mixed = cross + cross.mT
            gram_mean = w * w * gram_a + (1 - w) * (1 - w) * gram_b + w * (1 - w) * mixed
            half_a, half_b = full_spectrum(gram_a), full_spectrum(gram_b)
            mean = full_spectrum(gram_mean, vectors=False)
            overlap = cross.diagonal(dim1=-2, dim2=-1).sum(-1)
            inside = [(u * (cross @ u)).sum(-2) for u in (half_a.basis, half_b.basis)]
    elif single:
        mean = half_a = half_b = randomized_spectrum(a, vectors, seed=seed)
        errors = [mean.residuals * mean.energies.sqrt()] * 2
    else:
        half_a, half_b = (randomized_spectrum(half, vectors, seed=seed) for half in (a, b))
        mean = randomized_spectrum(torch.lerp(b, a, w), vectors, seed=seed)
        overlap = (a.double() * b.double()).sum((-2, -1))
        for spectrum, own, other in ((half_a, a, b), (half_b, b, a)):
            basis = spectrum.basis.float().mT
            seen = (basis @ other).double()
            inside.append(((basis @ own).double() * seen).sum(-1))
            # The residual of a vector is multiplied with what the other half has in its direction.
            errors.append(spectrum.residuals * torch.linalg.vector_norm(seen, dim=-1))
    if single:
        overlap, inside = mean.total, [mean.energies] * 2
    norms = float((half_a.total.sum() * half_b.total.sum()).sqrt())

    tails, cross_fitted = [], []
    for rank in ranks:
        tails.append(mean.tail(rank))
        covered = inside[0][:, :rank].sum(-1) + inside[1][:, :rank].sum(-1)
        outside = (overlap - covered / 2).sum()
        known = outside.abs() > ROUNDING * norms and not (mean.exact and rank >= short)
        # Errors of the vectors add up as independent ones do.
        squares = float(sum(error[:, :rank].square().sum() for error in errors))
        cross_fitted.append(Estimate(float(outside) if known else 0.0, math.sqrt(squares) / 2))
    rank_for_90, effective = mean.rank_for_share(0.9), None
    reached = mean.total > 0
    if mean.exact and bool(reached.any()):  # nuclear norms need the whole spectrum
        # `exp(entropy(s / sum s))`, mean over matrices that are not zero (Roy and Vetterli 2007).
        values = mean.energies[reached].sqrt()
        shares = values / values.sum(-1, keepdim=True)
        effective = float((-torch.special.xlogy(shares, shares).sum(-1)).exp().mean())
    return GradientStatistics(
        grad_energy=Estimate(float(mean.total.sum())),
        top_energy=Estimate(float(mean.energies[:, :1].sum()), mean.tail(1).error),
        tail_curve=tuple(each.value for each in tails),
        tail_errors=tuple(each.error for each in tails),
        hls_curve=tuple(each.value for each in cross_fitted),
        hls_errors=tuple(each.error for each in cross_fitted),
        rank_for_90=None if rank_for_90 is None else Estimate(rank_for_90),
        rank_for_99=mean.rank_for_share(0.99),
        effective_rank=effective,
        halves_norm=norms,
        matrices_reached=int(reached.sum()),
    )


def sign_step_curve(
    gradients: torch.Tensor, ranks: Sequence[int], *, method: str, seed: int
) -> tuple[float, ...]:
    """What each rank leaves over of the first step of Adam, in loss per unit step.

    Without momentum that step is `-eta sign(G)`, which lowers the loss by `eta ||G||_1`; its best
    approximation of rank r lowers it by `eta <G, P_r(sign G)>`. The rest may be below zero, where
    an entry of `P_r(sign G)` exceeds a sign and the gradient is large. Entries of `G` below the
    float32 rounding of the largest one of their matrix have no sign: they are noise, and Adam's
    epsilon keeps them from a full step too. Where singular values of `sign G` are equal, `P_r` is
    any of the best approximations. Signs have a flat spectrum: a randomized decomposition
    captures too little of it, and the value is then off by 0.1 % at a small rank and by 2 % at
    the largest one.

    Args:
        gradients: Mean gradients `G`, [E, p, q].

    Returns:
        `||G||_1 - <G, P_r(sign G)>` at each rank, summed over matrices; zero where the rank spans
        the whole matrix.
    """
    mean = short_first(gradients)
    noise = torch.finfo(torch.float32).eps * mean.abs().amax((-2, -1), keepdim=True)
    signs, short = torch.where(mean.abs() > noise, torch.sign(mean), 0.0), mean.shape[-2]
    whole = mean.abs().sum(dtype=torch.float64)
    if chooses_full(short, max(ranks), method):
        wide = signs.double()
        basis = full_spectrum(wide @ wide.mT).basis
        reached = (basis * (wide @ (mean.double().mT @ basis))).sum(-2)
    else:
        leading = randomized_spectrum(signs, max(ranks), seed=seed).basis.float().mT
        reached = ((leading @ signs).double() * (leading @ mean).double()).sum(-1)
    left = [float(whole - reached[:, :rank].sum()) for rank in ranks]
    return tuple(
        value if rank < short and abs(value) > ROUNDING * float(whole) else 0.0
        for rank, value in zip(ranks, left, strict=True)
    )
