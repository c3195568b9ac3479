"""Pure tensor math against full SVDs."""

from __future__ import annotations

import pytest
import reference
import torch
from matrices import noisy_halves, power_law

from hlscore.gradients.statistics import curve_ranks
from hlscore.gradients.tails import (
    HalfSpectra,
    chooses_full,
    full_half_spectra,
    full_spectrum,
    randomized_half_spectra,
    randomized_spectrum,
    rank_for_share,
)


def test_full_spectra_match_dense_oracle() -> None:
    first, second = noisy_halves(power_law(40, 70, 0.7, stack=2), 0.02)
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
    first, second = noisy_halves(power_law(300, 400, 0.8), 0.002, seed=3)
    exact = full_half_spectra(first, second, first_share=0.5)
    found = randomized_half_spectra(first, second, first_share=0.5, vectors=64, seed=0)
    assert isinstance(found, HalfSpectra)
    for rank, tolerance in ((1, 1e-3), (16, 0.01), (64, 0.1)):
        assert found.cross_fitted_tail(rank) == pytest.approx(
            exact.cross_fitted_tail(rank), rel=tolerance
        )
        assert found.mean.tail(rank) == pytest.approx(exact.mean.tail(rank), rel=tolerance)


@pytest.mark.parametrize("decay", [0.3, 0.8, 1.5])
def test_stated_error_of_the_randomized_cross_fitted_tail_covers_it(decay: float) -> None:
    within = []
    for seed in range(3):
        signal = power_law(200, 240, decay, seed=seed)
        noise = 0.3 * float(signal.square().sum().sqrt()) / 200
        first, second = noisy_halves(signal, noise, seed=100 + seed)
        exact = full_half_spectra(first, second, first_share=0.5)
        found = randomized_half_spectra(first, second, first_share=0.5, vectors=16, seed=seed)
        assert exact.cross_fitted_error(16) == 0
        for rank in (1, 4, 16):
            gap = abs(found.cross_fitted_tail(rank) - exact.cross_fitted_tail(rank))
            scale = exact.cross_fitted_tail(0)
            within.append(gap <= 2 * found.cross_fitted_error(rank) + 1e-6 * scale)
    assert sum(within) >= 0.8 * len(within)


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
    assert curve_ranks(16) == (0, 1, 2, 4, 8, 16, 32, 64)
    assert curve_ranks(24) == (0, 1, 2, 4, 8, 16, 24, 32, 64)
    assert curve_ranks(64)[-1] == 128
    assert curve_ranks(24, 40) == (0, 1, 2, 4, 8, 16, 24, 32)
    assert curve_ranks(48, 32) == (0, 1, 2, 4, 8, 16, 32, 48)
