"""Bootstrap over probe groups: pure functions of tensors.

Groups are drawn with replacement within each half, and every resample gets its own leading
subspaces, from sketches of the groups. (Keeping the subspaces of the full halves is cheaper but
overstates the standard error of the cross-fitted tail up to 14 times: see
`benchmarks/README.md`.) The draws are the same for every module,
which keeps their dependence and lets a whole choice be repeated per resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Resamples:
    """How often each group is drawn in each resample.

    Attributes:
        first: Draws from the first half, float64 [resamples, groups].
        second: Draws from the second half, float64 [resamples, groups].
        first_tokens: Counted tokens of each group of the first half, float64 [groups].
        second_tokens: Counted tokens of each group of the second half, float64 [groups].
    """

    first: torch.Tensor
    second: torch.Tensor
    first_tokens: torch.Tensor
    second_tokens: torch.Tensor

    def first_weights(self) -> torch.Tensor:
        """Weight of each group in the mean of the first half, float64 [resamples, groups]."""
        return self.first / (self.first @ self.first_tokens)[:, None]

    def second_weights(self) -> torch.Tensor:
        """Weight of each group in the mean of the second half, float64 [resamples, groups]."""
        return self.second / (self.second @ self.second_tokens)[:, None]

    def first_share(self) -> torch.Tensor:
        """Share of the counted tokens drawn in the first half, float64 [resamples]."""
        tokens = self.first @ self.first_tokens
        return tokens / (tokens + self.second @ self.second_tokens)


def draw_resamples(
    first_tokens: Sequence[int], second_tokens: Sequence[int], *, count: int, seed: int
) -> Resamples | None:
    """Draw the resamples of a run.

    Args:
        first_tokens: Counted tokens of each group of the first half.
        second_tokens: Counted tokens of each group of the second half.
        count: Resamples.
        seed: Seed of the draws.

    Returns:
        The draws, or `None` when there is nothing to draw from: no resamples were asked for,
        or a half has a single group.
    """
    if count == 0 or min(len(first_tokens), len(second_tokens)) < 2:
        return None
    generator = np.random.default_rng(seed)
    draws = [
        torch.from_numpy(
            generator.multinomial(len(half), np.full(len(half), 1 / len(half)), size=count)
        ).double()
        for half in (first_tokens, second_tokens)
    ]
    return Resamples(
        first=draws[0],
        second=draws[1],
        first_tokens=torch.tensor(first_tokens, dtype=torch.float64),
        second_tokens=torch.tensor(second_tokens, dtype=torch.float64),
    )


def centred_replicates(drawn: torch.Tensor, value: float) -> torch.Tensor:
    """Place replicates around the value that they belong to.

    Drawing groups twice adds noise energy and sketching takes some away; both shift all
    replicates of a module alike, so their own mean is replaced by the exact value.

    Args:
        drawn: Replicates as drawn, float64 [resamples].
        value: The quantity itself.

    Returns:
        float64 [resamples], with mean `value`.
    """
    return value + (drawn - drawn.mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnScores:
    """Scores of one module in every resample, from sketches, float64 [resamples] each.

    Attributes:
        hls: Cross-fitted tail.
        tail: Tail energy of the mean gradient.
        grad_norm: Energy of the mean gradient.
    """

    hls: torch.Tensor
    tail: torch.Tensor
    grad_norm: torch.Tensor


def draw_scores(sketches: torch.Tensor, resamples: Resamples, rank: int) -> DrawnScores:
    """Compute the scores of one module again in every resample.

    With `Y_A`, `Y_B` the sketched mean gradients of a resample and `v_i` the leading right
    singular vectors of `Y_A`, `<(Y_A)_r, Y_B> = sum_{i<=r} v_i^T Y_A^T Y_B v_i`: the k x k Gram
    matrices of the groups are all that is needed.

    Args:
        sketches: Sketched sums of the groups, first half first, float32 [g, E, m, k].
        resamples: The draws.
        rank: LoRA rank, at most k.

    Returns:
        Scores summed over the E matrices.
    """
    # float32 is ample for replicates and twice as fast; scaling keeps small squares normal.
    device, unit = sketches.device, sketches.abs().amax().clamp(min=1e-30)
    tokens = resamples.first_tokens.mean()
    first = (resamples.first_weights() * tokens).to(device, torch.float32)
    second = (resamples.second_weights() * tokens).to(device, torch.float32)
    share = resamples.first_share().to(device, torch.float32)[:, None, None]
    halves = first.shape[1]
    hls, tail, energy = torch.zeros(3, first.shape[0], dtype=torch.float64, device=device)
    for index in range(sketches.shape[1]):
        gram = _group_grams(sketches[:, index] / unit)
        a = _mix(gram[:halves, :halves], first, first)
        b = _mix(gram[halves:, halves:], second, second)
        cross = _mix(gram[:halves, halves:], first, second)
        hls += _trace(cross) - (_inside(a, cross, rank) + _inside(b, cross, rank)) / 2
        mean = share**2 * a + (1 - share) ** 2 * b + share * (1 - share) * (cross + cross.mT)
        values = torch.linalg.eigvalsh(mean).clamp(min=0)
        tail += values[:, : values.shape[1] - rank].sum(-1)
        energy += values.sum(-1)
    scale = (unit.double().cpu() / tokens) ** 2
    return DrawnScores(
        hls=hls.cpu() * scale, tail=tail.cpu() * scale, grad_norm=energy.cpu() * scale
    )


def _group_grams(sketches: torch.Tensor) -> torch.Tensor:
    """`Y_i^T Y_j` for every two groups: [g, m, k] gives [g, g, k, k]."""
    groups, rows, size = sketches.shape
    flat = sketches.transpose(0, 1).reshape(rows, groups * size)
    return (flat.T @ flat).reshape(groups, size, groups, size).transpose(1, 2)


def _mix(grams: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Weigh the Gram matrices of groups per resample: [R, k, k]."""
    pairs = (left[:, :, None] * right[:, None, :]).flatten(1)
    return (pairs @ grams.flatten(2).flatten(0, 1)).reshape(-1, *grams.shape[2:])


def _inside(gram: torch.Tensor, cross: torch.Tensor, rank: int) -> torch.Tensor:
    """`sum_{i<=r} v_i^T C v_i` over the leading eigenvectors of each Gram matrix."""
    vectors: torch.Tensor = torch.linalg.eigh(gram).eigenvectors[..., -rank:]
    return (vectors * (cross @ vectors)).sum((-2, -1))


def _trace(matrices: torch.Tensor) -> torch.Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
