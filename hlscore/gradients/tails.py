"""Spectra of mean gradients and cross-fitted tails: pure functions of tensors.

Notation: `A` and `B` are the mean gradients of two independent halves of the probes, `G` that
of all of them. `s_1 >= s_2 >= ...` are singular values, `H_r` the energy of the best rank-r
approximation (Eckart-Young), `T_r = ||G||_F^2 - H_r`. The cross-fitted tail is
`S_r = 1/2 [<A - A_r, B> + <B - B_r, A>]` with `A_r` the best rank-r approximation of `A`.
Matrices come as [E, m, n] with m <= n; energies are summed over the E matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hlscore.gradients.sketch import short_first
from hlscore.records import Estimate

OVERSAMPLING = 32
POWER_ITERATIONS = 3
FULL_UP_TO = 512
_CHUNK_NUMBERS = 2**18
# Gradients are float32: a share of the energy as small as this is rounding, reported as zero.
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class TailEstimates:
    """Energies and tails of one module, summed over its matrices.

    Errors are standard errors that sketching or a randomized decomposition adds; zero where
    nothing is estimated.

    Attributes:
        energy: `||G||_F^2` of the mean gradient.
        top: `s_1^2`.
        tails: `T_r` at each rank, and their errors, float64 [2, ranks].
        cross_fitted: `S_r` at each rank, and their errors, float64 [2, ranks].
        rank_for_90: Smallest rank that holds 90 % of the energy; `None` where it is not known.
        rank_for_99: The same for 99 %; `None` with sketches.
        effective_rank: See `effective_rank`; `None` unless the spectrum is exact.
        matrices_reached: Matrices with a gradient other than zero.
    """

    energy: Estimate
    top: Estimate
    tails: torch.Tensor
    cross_fitted: torch.Tensor
    rank_for_90: Estimate | None
    rank_for_99: int | None = None
    effective_rank: float | None = None
    matrices_reached: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """Energies and leading left singular vectors of E matrices.

    Attributes:
        energies: Squared singular values, largest first, float64 [E, l]; all of them when
            `exact`, else the leading ones as the subspace iteration found them.
        basis: Left singular vectors, float64 or float32 [E, m, l]; may be left out.
        total: `||X||_F^2` of each matrix, float64 [E].
        residuals: `||X v - s u||` of each vector, float64 [E, l]; zero when `exact`.
        exact: Whether the spectrum is complete.
    """

    energies: torch.Tensor
    basis: torch.Tensor
    total: torch.Tensor
    residuals: torch.Tensor
    exact: bool

    def head(self, rank: int) -> torch.Tensor:
        """Energy of the best rank-`rank` part, summed over matrices."""
        return self.energies[:, :rank].sum()

    def tail(self, rank: int) -> float:
        """Energy outside the best rank-`rank` part, summed over matrices.

        Exact spectra sum the small values, so that a small tail keeps its digits.
        """
        total = self.total.sum()
        outside = self.energies[:, rank:].flip(-1).sum() if self.exact else total - self.head(rank)
        return float(outside) if outside > ROUNDING * total else 0.0

    def head_error(self, rank: int) -> float:
        """Estimated error of `head(rank)` and `tail(rank)`, from the residuals of the vectors.

        A singular value lies within `residual` of each computed one, so the head is off by at
        most `sum (2 s residual + residual^2)`, provided the vectors belong to the leading
        values, and by no more than the tail. Zero for exact spectra.
        """
        if self.exact:
            return 0.0
        values, residuals = self.energies[:, :rank].sqrt(), self.residuals[:, :rank]
        bound = (2 * values * residuals + residuals**2).sum()
        return float(bound.clamp(max=self.tail(rank)))


def chooses_full(short_side: int, vectors: int, method: str) -> bool:
    """Whether a matrix is decomposed completely: always where iterating would find nearly all."""
    if method == "full" or vectors + OVERSAMPLING >= short_side:
        return True
    return method == "auto" and short_side <= FULL_UP_TO


def full_spectrum(gram: torch.Tensor, *, vectors: bool = True) -> Spectrum:
    """Decompose `X X^T` completely.

    Args:
        gram: Symmetric, float64 [E, m, m].
        vectors: Whether the vectors are wanted; without them it takes half the time.
    """
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfSpectra:
    """Spectra of both halves and of the mean, with what the cross-fitted tail needs.

    Attributes:
        mean: Spectrum of `G`.
        first: Spectrum of `A`.
        second: Spectrum of `B`.
        overlap: `<A, B>` of each matrix, float64 [E].
        first_overlaps: `u_i^T B A^T u_i` for the vectors of `A`, float64 [E, l].
        second_overlaps: `u_i^T A B^T u_i` for the vectors of `B`, float64 [E, l].
        first_shadows: `||B^T u_i||` for the vectors of `A`, float64 [E, l].
        second_shadows: `||A^T u_i||` for the vectors of `B`, float64 [E, l].
    """

    mean: Spectrum
    first: Spectrum
    second: Spectrum
    overlap: torch.Tensor
    first_overlaps: torch.Tensor
    second_overlaps: torch.Tensor
    first_shadows: torch.Tensor
    second_shadows: torch.Tensor

    def cross_fitted_tail(self, rank: int) -> float:
        """`S_r`: loss decrease per unit learning rate, in nats, that rank r cannot reach."""
        if self.mean.exact and rank >= self.mean.energies.shape[-1]:
            return 0.0
        inside = self.first_overlaps[:, :rank].sum(-1) + self.second_overlaps[:, :rank].sum(-1)
        outside = (self.overlap - inside / 2).sum()
        scale = (self.first.total.sum() * self.second.total.sum()).sqrt()
        return float(outside) if outside.abs() > ROUNDING * scale else 0.0

    def cross_fitted_error(self, rank: int) -> float:
        """Estimated error of `cross_fitted_tail(rank)`; zero for exact spectra.

        The residual of a vector of one half is multiplied with what the other half has in its
        direction, and those products add up as independent ones do.
        """
        if self.mean.exact:
            return 0.0
        first = (self.first.residuals * self.first_shadows)[:, :rank]
        second = (self.second.residuals * self.second_shadows)[:, :rank]
        return float((first.square().sum() + second.square().sum()).sqrt() / 2)

    def estimates(self, ranks: Sequence[int]) -> TailEstimates:
        """What a report says of a module, at LoRA ranks r."""
        mean, rank_for_90 = self.mean, rank_for_share(self.mean, 0.9)
        tails = [mean.tail(r) for r in ranks], [mean.head_error(r) for r in ranks]
        cross_fitted = (
            [self.cross_fitted_tail(r) for r in ranks],
            [self.cross_fitted_error(r) for r in ranks],
        )
        return TailEstimates(
            energy=Estimate(float(mean.total.sum())),
            top=Estimate(float(mean.head(1)), mean.head_error(1)),
            tails=torch.tensor(tails, dtype=torch.float64),
            cross_fitted=torch.tensor(cross_fitted, dtype=torch.float64),
            rank_for_90=None if rank_for_90 is None else Estimate(rank_for_90),
            rank_for_99=rank_for_share(mean, 0.99),
            effective_rank=effective_rank(mean),
            matrices_reached=int((mean.total > 0).sum()),
        )


def half_spectra(
    first: torch.Tensor,
    second: torch.Tensor,
    *,
    first_share: float,
    vectors: int,
    method: str,
    seed: int,
) -> HalfSpectra:
    """Decompose both halves, completely or for their leading part.

    Args:
        first: Mean gradient of the first half, float32 [E, p, q].
        second: Mean gradient of the second half; the same tensor where there is only one.
        first_share: Share of the counted tokens in the first half.
        vectors: Singular vectors that are needed.
        method: `auto`, `full` or `randomized`.
    """
    a, b = short_first(first), short_first(second)
    full = chooses_full(a.shape[-2], vectors, method)
    if first is second:
        if full:
            whole = a.double()
            spectrum = full_spectrum(whole @ whole.mT, vectors=False)
        else:
            spectrum = randomized_spectrum(a, vectors, seed=seed)
        # The cross-fitted tail of equal halves is the plain one.
        return HalfSpectra(
            mean=spectrum,
            first=spectrum,
            second=spectrum,
            overlap=spectrum.total,
            first_overlaps=spectrum.energies,
            second_overlaps=spectrum.energies,
            first_shadows=spectrum.energies.sqrt(),
            second_shadows=spectrum.energies.sqrt(),
        )
    if full:
        return full_half_spectra(a, b, first_share=first_share)
    return randomized_half_spectra(a, b, first_share=first_share, vectors=vectors, seed=seed)


def full_half_spectra(
    first: torch.Tensor, second: torch.Tensor, *, first_share: float
) -> HalfSpectra:
    """Decompose both halves and their mean completely, in float64.

    `G` itself is never formed: its Gram matrix follows from those of the halves.

    Args:
        first: Mean gradient `A` of the first half, float32 [E, m, n].
        second: Mean gradient `B` of the second half, float32 [E, m, n].
        first_share: Share of the counted tokens in the first half.
    """
    a, b = first.double(), second.double()
    gram_a, gram_b, cross = a @ a.mT, b @ b.mT, a @ b.mT
    w = first_share
    mixed = cross + cross.mT
    gram_mean = w * w * gram_a + (1 - w) * (1 - w) * gram_b + w * (1 - w) * mixed
    spectrum_a, spectrum_b = full_spectrum(gram_a), full_spectrum(gram_b)
    return HalfSpectra(
        mean=full_spectrum(gram_mean, vectors=False),
        first=spectrum_a,
        second=spectrum_b,
        overlap=cross.diagonal(dim1=-2, dim2=-1).sum(-1),
        first_overlaps=(spectrum_a.basis * (cross @ spectrum_a.basis)).sum(-2),
        second_overlaps=(spectrum_b.basis * (cross @ spectrum_b.basis)).sum(-2),
        first_shadows=torch.zeros_like(spectrum_a.energies),
        second_shadows=torch.zeros_like(spectrum_b.energies),
    )


def randomized_half_spectra(
    first: torch.Tensor, second: torch.Tensor, *, first_share: float, vectors: int, seed: int
) -> HalfSpectra:
    """Find the leading part of both halves and of their mean; see `full_half_spectra`."""
    mean = torch.lerp(second, first, first_share)
    spectrum_a = randomized_spectrum(first, vectors, seed=seed)
    spectrum_b = randomized_spectrum(second, vectors, seed=seed)
    own_a, other_a = _projections(spectrum_a.basis, first, second)
    own_b, other_b = _projections(spectrum_b.basis, second, first)
    return HalfSpectra(
        mean=randomized_spectrum(mean, vectors, seed=seed),
        first=spectrum_a,
        second=spectrum_b,
        overlap=(first.double() * second.double()).sum((-2, -1)),
        first_overlaps=(own_a * other_a).sum(-1),
        second_overlaps=(own_b * other_b).sum(-1),
        first_shadows=torch.linalg.vector_norm(other_a, dim=-1),
        second_shadows=torch.linalg.vector_norm(other_b, dim=-1),
    )


def _projections(
    vectors: torch.Tensor, own: torch.Tensor, other: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    basis = vectors.float().mT
    return (basis @ own).double(), (basis @ other).double()


def effective_rank(spectrum: Spectrum) -> float | None:
    """`exp(entropy(s / sum s))`, mean over matrices that are not zero (Roy and Vetterli 2007).

    `None` where all are zero, or the spectrum is not exact: nuclear norms need all of it.
    """
    reached = spectrum.total > 0
    if not spectrum.exact or not bool(reached.any()):
        return None
    values = spectrum.energies[reached].sqrt()
    shares = values / values.sum(-1, keepdim=True)
    entropy = -torch.special.xlogy(shares, shares).sum(-1)
    return float(entropy.exp().mean())


def rank_for_share(spectrum: Spectrum, share: float) -> int | None:
    """Smallest rank whose head holds a share of the energy; `None` beyond the known vectors."""
    total = float(spectrum.total.sum())
    if total <= 0:
        return None
    heads = spectrum.energies.sum(0).cumsum(0)
    enough = heads >= share * total * (1 - 1e-12)
    return int(enough.to(torch.int8).argmax()) + 1 if bool(enough.any()) else None
