"""Influences of probe groups, against scores that are computed again without each."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from matrices import power_law

from hlscore.gradients import jackknife
from hlscore.gradients.jackknife import Influences, influences

FIRST_TOKENS = torch.tensor([5, 7, 6, 9], dtype=torch.float64)
SECOND_TOKENS = torch.tensor([8, 4, 6], dtype=torch.float64)

FLOAT32 = 2.0**-23
Matrix = np.ndarray
NAMES = ("hls", "tail", "grad_norm")


def group_sums(rows: int, columns: int, *, noise: float = 0.1, stack: int = 2) -> torch.Tensor:
    """Gradient sums of seven groups, float32 [7, stack, rows, columns]."""
    signal = power_law(rows, columns, 1.0, stack=stack)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.cat((FIRST_TOKENS, SECOND_TOKENS)).float()
    drawn = noise * torch.randn(7, *signal.shape, generator=generator)
    return (signal + drawn) * tokens[:, None, None, None]


def scores(sums: Matrix, kept: list[int], rank: int) -> tuple[float, float, float]:
    """Cross-fitted tail, tail and energy from some groups, from dense means and full SVDs."""
    tokens = torch.cat((FIRST_TOKENS, SECOND_TOKENS)).numpy()
    halves = [[g for g in kept if g < 4], [g for g in kept if g >= 4]]
    a, b = (sums[part].sum(0) / tokens[part].sum() for part in halves)
    return dense_scores(a, b, sums[kept].sum(0) / tokens[kept].sum(), rank)


def dense_scores(a: Matrix, b: Matrix, mean: Matrix, rank: int) -> tuple[float, float, float]:
    return (
        reference.cross_fitted_tail(a, b, rank),
        reference.tail(mean, rank),
        reference.energy(mean),
    )


def variance(influence: torch.Tensor) -> float:
    return float(influence.square().sum())


def scaled(values: Matrix) -> Matrix:
    """Values without each group as influences: squares sum to Tukey's jackknife variance."""
    count = len(values)
    return (values.mean() - values) * np.sqrt((count - 1) / count)


@pytest.mark.parametrize(("rows", "columns"), [(12, 30), (30, 12), (3, 8)])
@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_influences_match_recomputing_without_each_group(
    rows: int, columns: int, noise: float
) -> None:
    rank, sums = 3, group_sums(rows, columns, noise=noise)
    found = influences(sums, FIRST_TOKENS, SECOND_TOKENS, rank)
    dense = sums.double().numpy()
    without = [scores(dense, [g for g in range(7) if g != out], rank) for out in range(7)]
    hls, tail, energy = (np.array(part) for part in zip(*without, strict=True))
    whole = scores(dense, list(range(7)), rank)
    assert found.energy == pytest.approx(whole[2], rel=1e-5)
    for influence, values in ((found.tail, tail), (found.grad_norm, energy)):
        np.testing.assert_allclose(
            influence.numpy(), scaled(values), atol=1e-4 * np.abs(values).max() + FLOAT32 * whole[2]
        )

    # For the cross-fitted tail, the variance of the product of both noises is taken off once.
    pairs = np.array(
        [
            [scores(dense, [g for g in range(7) if g not in (i, j)], rank)[0] for j in (4, 5, 6)]
            for i in range(4)
        ]
    )
    mixed = pairs - pairs.mean(0) - pairs.mean(1, keepdims=True) + pairs.mean()
    shared = (mixed**2).sum() * (3 / 4) * (2 / 3)
    first, second = scaled(hls[:4]), scaled(hls[4:])
    twice = (first**2).sum() + (second**2).sum()
    share = max(1 - shared / twice, 0.25)
    tolerance = 1e-3 * np.abs(first).max() + 1e-6 * abs(whole[2])
    expected = np.concatenate((first, second)) * share**0.5
    np.testing.assert_allclose(found.hls.numpy(), expected, atol=tolerance)
    assert variance(found.hls) == pytest.approx(twice * share, rel=0.01, abs=tolerance**2)


def test_influences_of_many_matrices_are_those_of_their_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sums = group_sums(6, 9, stack=5)
    whole = influences(sums, FIRST_TOKENS, SECOND_TOKENS, 2)
    monkeypatch.setattr(jackknife, "_CHUNK_NUMBERS", 1)
    parts = influences(sums, FIRST_TOKENS, SECOND_TOKENS, 2)
    assert_alike(parts, whole, 3e-5)


def test_influences_of_tiny_gradients_do_not_underflow() -> None:
    sums = group_sums(6, 9)
    large = influences(sums, FIRST_TOKENS, SECOND_TOKENS, 2)
    small = influences(sums * 2.0**-60, FIRST_TOKENS, SECOND_TOKENS, 2)
    scale = 2.0**120
    back = Influences(
        **{name: getattr(small, name) * scale for name in NAMES}, energy=small.energy * scale
    )
    assert_alike(back, large, 1e-5)
    nothing = influences(sums * 0, FIRST_TOKENS, SECOND_TOKENS, 2)
    assert nothing.energy == 0
    assert not any(getattr(nothing, name).any() for name in NAMES)


def assert_alike(found: Influences, expected: Influences, tolerance: float) -> None:
    assert found.energy == pytest.approx(expected.energy, rel=tolerance)
    for name in NAMES:
        ours, theirs = getattr(found, name), getattr(expected, name)
        largest = float(theirs.abs().max())
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=2 * tolerance * largest)


@pytest.mark.parametrize(("noise", "low", "high"), [(0.02, 0.6, 1.7), (0.15, 0.5, 2.0)])
def test_variance_is_that_over_independent_probe_sets(
    noise: float, low: float, high: float
) -> None:
    """Simulated probe sets: what the jackknife tells of one, and how they differ in truth."""
    rank, groups, draws = 2, 8, 60
    signal = power_law(10, 16, 0.7)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.ones(groups, dtype=torch.float64)
    variances, values = [], []
    for _ in range(draws):
        drawn = noise * torch.randn(2 * groups, *signal.shape, generator=generator)
        sums = signal + drawn
        found = influences(sums, tokens, tokens, rank)
        variances.append(tuple(map(variance, (found.hls, found.tail, found.grad_norm))))
        a, b = (part.mean(0).double().numpy() for part in (sums[:groups], sums[groups:]))
        values.append(dense_scores(a, b, (a + b) / 2, rank))
    true = np.var(values, axis=0, ddof=1)
    ratios = np.mean(variances, axis=0) / true
    assert (low <= ratios).all(), ratios
    assert (ratios <= high).all(), ratios
