"""Pure tensor math against full SVDs."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch

from hlscore.gradients.bootstrap import Resamples, draw_resamples, draw_scores
from hlscore.gradients.sketch import draw_omega, short_first, sketch
from hlscore.gradients.spectrum import (
    HalfSpectra,
    chooses_full,
    curve_ranks,
    full_half_spectra,
    full_spectrum,
    randomized_half_spectra,
    randomized_spectrum,
    rank_for_share,
)


def power_law(
    rows: int, columns: int, decay: float, *, seed: int = 0, stack: int = 1
) -> torch.Tensor:
    """Matrices whose singular values fall as 1 / i**decay."""
    generator = torch.Generator().manual_seed(seed)
    size = min(rows, columns)
    left = torch.linalg.qr(torch.randn(stack, rows, size, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(stack, columns, size, generator=generator)).Q
    values = torch.arange(1, size + 1, dtype=torch.float32) ** -decay
    return (left * values) @ right.mT


def noisy_halves(*, stack: int = 2, noise: float = 0.02) -> tuple[torch.Tensor, torch.Tensor]:
    signal = power_law(40, 70, 0.7, stack=stack)
    generator = torch.Generator().manual_seed(9)
    return tuple(  # type: ignore[return-value]
        signal + noise * torch.randn(signal.shape, generator=generator) for _ in range(2)
    )


def test_full_spectra_match_dense_oracle() -> None:
    first, second = noisy_halves()
    spectra = full_half_spectra(first, second, first_share=0.3)
    a, b = first.double().numpy(), second.double().numpy()
    mean = 0.3 * a + 0.7 * b
    for rank in (1, 5, 39, 40, 64):
        expected = reference.cross_fitted_tail(a, b, rank)
        assert spectra.cross_fitted_tail(rank) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert spectra.mean.tail(rank) == pytest.approx(
            reference.tail(mean, rank), rel=1e-6, abs=1e-12
        )


@pytest.mark.parametrize("decay", [0.3, 1.0, 2.0])
def test_randomized_head_is_within_its_stated_error(decay: float) -> None:
    matrix = power_law(300, 500, decay)
    found = randomized_spectrum(matrix, 16, seed=0)
    exact = full_spectrum(matrix.double() @ matrix.double().mT)
    for rank in (1, 4, 16):
        true_head, head = float(exact.head(rank)), float(found.head(rank))
        error = (true_head - head) / true_head
        assert -1e-6 <= error <= found.head_error(rank) + 1e-6
        assert error < 0.02


def test_randomized_cross_fitted_tail_is_near_the_full_one() -> None:
    signal = power_law(300, 400, 0.8)
    generator = torch.Generator().manual_seed(3)
    first, second = (
        signal + 0.002 * torch.randn(signal.shape, generator=generator) for _ in range(2)
    )
    exact = full_half_spectra(first, second, first_share=0.5)
    found = randomized_half_spectra(first, second, first_share=0.5, vectors=64, seed=0)
    assert isinstance(found, HalfSpectra)
    for rank, tolerance in ((1, 1e-3), (16, 0.01), (64, 0.1)):
        assert found.cross_fitted_tail(rank) == pytest.approx(
            exact.cross_fitted_tail(rank), rel=tolerance
        )
        assert found.mean.tail(rank) == pytest.approx(exact.mean.tail(rank), rel=tolerance)


def test_full_decomposition_is_taken_when_it_costs_no_more() -> None:
    assert chooses_full(512, 64, "auto")
    assert not chooses_full(513, 64, "auto")
    assert chooses_full(4096, 64, "full")
    assert chooses_full(96, 64, "randomized")
    assert not chooses_full(97, 64, "randomized")


def test_rank_for_share_counts_from_the_largest() -> None:
    values = torch.tensor([[8.0, 1.0, 0.5, 0.5]], dtype=torch.float64)
    spectrum = full_spectrum(torch.diag_embed(values))
    assert rank_for_share(spectrum, 0.8) == 1
    assert rank_for_share(spectrum, 0.9) == 2
    assert rank_for_share(spectrum, 1.0) == 4
    assert rank_for_share(full_spectrum(torch.zeros(1, 3, 3, dtype=torch.float64)), 0.9) is None


def test_curves_hold_the_rank_of_the_run() -> None:
    assert curve_ranks(16) == (1, 2, 4, 8, 16, 32, 64)
    assert curve_ranks(24) == (1, 2, 4, 8, 16, 24, 32, 64)
    assert curve_ranks(64)[-1] == 128


def test_sketches_are_unbiased_and_reproducible() -> None:
    matrix = torch.randn(1, 20, 300, generator=torch.Generator().manual_seed(0))
    energy = float((matrix**2).sum())
    drawn = []
    for seed in range(200):
        omega = draw_omega("m", seed=seed, width=300, size=32, device=torch.device("cpu"))
        drawn.append(float((sketch(matrix, omega) ** 2).sum()))
    assert np.mean(drawn) == pytest.approx(energy, rel=0.02)
    again = draw_omega("m", seed=0, width=300, size=32, device=torch.device("cpu"))
    other = draw_omega("n", seed=0, width=300, size=32, device=torch.device("cpu"))
    assert again is not None
    assert other is not None
    assert not torch.equal(again, other)
    assert draw_omega("m", seed=0, width=32, size=32, device=torch.device("cpu")) is None


def test_sketches_take_the_long_side_of_either_orientation() -> None:
    tall = torch.randn(2, 50, 7)
    assert short_first(tall).shape == (2, 7, 50)
    omega = draw_omega("m", seed=0, width=50, size=8, device=torch.device("cpu"))
    assert torch.equal(sketch(tall, omega), sketch(tall.mT, omega))


def _resampled(sums: np.ndarray, draws: Resamples, rank: int) -> list[tuple[float, float, float]]:
    """The scores of each resample, from dense means and full SVDs."""
    tokens = torch.cat((draws.first_tokens, draws.second_tokens)).numpy()
    halves = len(draws.first_tokens)
    found = []
    for wa, wb in zip(draws.first.numpy(), draws.second.numpy(), strict=True):
        weights = np.concatenate((wa, wb))
        total = np.einsum("g,geab->geab", weights, sums)
        counts = weights * tokens
        a = total[:halves].sum(0) / counts[:halves].sum()
        b = total[halves:].sum(0) / counts[halves:].sum()
        mean = total.sum(0) / counts.sum()
        found.append(
            (
                reference.cross_fitted_tail(a, b, rank),
                reference.tail(mean, rank),
                reference.energy(mean),
            )
        )
    return found


@pytest.mark.parametrize(("rows", "columns"), [(12, 30), (30, 12)])
def test_bootstrap_matches_recomputing_every_resample(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(1)
    signal = power_law(rows, columns, 1.0, stack=2)
    sums = torch.stack(
        [signal + 0.1 * torch.randn(signal.shape, generator=generator) for _ in range(7)]
    )
    draws = draw_resamples([5, 7, 6, 9], [8, 4, 6], count=25, seed=0)
    assert draws is not None
    sketches = torch.stack([sketch(group, None) for group in sums])
    found = draw_scores(sketches, draws, 3)
    expected = np.array(_resampled(sums.double().numpy(), draws, 3))
    np.testing.assert_allclose(found.hls.numpy(), expected[:, 0], rtol=1e-3)
    np.testing.assert_allclose(found.tail.numpy(), expected[:, 1], rtol=1e-3)
    np.testing.assert_allclose(found.grad_norm.numpy(), expected[:, 2], rtol=1e-4)


def test_bootstrap_of_tiny_gradients_does_not_underflow() -> None:
    sums = torch.randn(4, 1, 6, 9, generator=torch.Generator().manual_seed(0))
    draws = draw_resamples([5, 7], [8, 4], count=10, seed=0)
    assert draws is not None
    large, small = draw_scores(sums, draws, 2), draw_scores(sums * 1e-18, draws, 2)
    np.testing.assert_allclose(small.hls.numpy() * 1e36, large.hls.numpy(), rtol=1e-4)


def test_nothing_is_drawn_from_a_single_group() -> None:
    assert draw_resamples([5], [8, 4], count=10, seed=0) is None
    assert draw_resamples([5, 6], [8, 4], count=0, seed=0) is None
