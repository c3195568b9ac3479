"""Pure tensor math against full SVDs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from matrices import noisy_halves, power_law
from problems import RANK, completions, run_report, settings

from hlscore.gradients.statistics import curve_ranks
from hlscore.gradients.tails import (
    chooses_full,
    full_spectrum,
    gradient_tails,
    randomized_spectrum,
    sign_step_curve,
)  # fmt: skip
from hlscore.records import GradientStatistics
from hlscore.settings import PlanSettings

RANKS = (0, 1, 2, 5, 12)


def tails(
    first: torch.Tensor, second: torch.Tensor, ranks: Sequence[int], *, share: float = 0.5,
    method: str = "full", seed: int = 0,
) -> GradientStatistics:  # fmt: skip
    return gradient_tails(first, second, first_share=share, ranks=ranks, method=method, seed=seed)


@pytest.mark.parametrize("single", [False, True])
def test_full_spectra_match_dense_oracle(single: bool) -> None:
    ranks = (1, 5, 39, 40, 64)
    first, second = noisy_halves(power_law(40, 70, 0.7, stack=2), 0.02)
    if single:
        second = first
    found = tails(first, second, ranks, share=0.3)
    a, b = first.double().numpy(), second.double().numpy()
    mean = 0.3 * a + 0.7 * b
    for place, rank in enumerate(ranks):
        expected = reference.cross_fitted_tail(a, b, rank)
        assert found.hls_curve[place] == pytest.approx(expected, rel=1e-9, abs=1e-11)
        expected = reference.tail(mean, rank)
        assert found.tail_curve[place] == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert {*found.hls_errors, *found.tail_errors} == {0.0}


@pytest.mark.parametrize("decay", [0.3, 1.0, 2.0])
def test_randomized_head_is_within_its_stated_error(decay: float) -> None:
    matrix = power_law(300, 500, decay)
    found = randomized_spectrum(matrix, 16, seed=0)
    exact = full_spectrum(matrix.double() @ matrix.double().mT)
    for rank in (1, 4, 16):
        true_head, head = (float(s.energies[:, :rank].sum()) for s in (exact, found))
        error = (true_head - head) / true_head
        assert -1e-6 <= error <= found.tail(rank).error + 1e-6
        assert error < 0.02


@pytest.mark.parametrize("single", [False, True])
def test_randomized_tails_are_near_the_full_ones(single: bool) -> None:
    first, second = noisy_halves(power_law(300, 400, 0.8), 0.002, seed=3)
    if single:
        second = first
    exact, found = (tails(first, second, (1, 16, 64), method=m) for m in ("full", "randomized"))
    for place, tolerance in enumerate((1e-3, 0.01, 0.1)):
        assert found.hls_curve[place] == pytest.approx(exact.hls_curve[place], rel=tolerance)
        assert found.tail_curve[place] == pytest.approx(exact.tail_curve[place], rel=tolerance)
    assert found.effective_rank is None
    assert exact.effective_rank


@pytest.mark.parametrize("decay", [0.3, 0.8, 1.5])
def test_stated_error_of_the_randomized_cross_fitted_tail_covers_it(decay: float) -> None:
    within = []
    for seed in range(3):
        signal = power_law(200, 240, decay, seed=seed)
        noise = 0.3 * float(signal.square().sum().sqrt()) / 200
        halves, ranks = noisy_halves(signal, noise, seed=100 + seed), (0, 1, 4, 16)
        exact = np.array(tails(*halves, ranks).hls_curve)
        found = tails(*halves, ranks, method="randomized", seed=seed)
        gaps = np.abs(np.array(found.hls_curve) - exact)
        within += (gaps <= 2 * np.array(found.hls_errors) + 1e-6 * exact[0]).tolist()[1:]
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
    assert [spectrum.rank_for_share(share) for share in (0.8, 0.9, 1.0)] == [1, 2, 4]
    nothing = full_spectrum(torch.zeros(1, 3, 3, dtype=torch.float64))
    assert nothing.rank_for_share(0.9) is None


def test_curves_hold_the_rank_of_the_run() -> None:
    assert curve_ranks(16) == (0, 1, 2, 4, 8, 16, 32, 64)
    assert curve_ranks(24) == (0, 1, 2, 4, 8, 16, 24, 32, 64)
    assert curve_ranks(64)[-1] == 128
    assert curve_ranks(24, 40) == (0, 1, 2, 4, 8, 16, 24, 32)
    assert curve_ranks(48, 32) == (0, 1, 2, 4, 8, 16, 32, 48)


def curve(stack: torch.Tensor, ranks: Sequence[int] = RANKS, method: str = "auto") -> list[float]:
    return list(sign_step_curve(stack, ranks, method=method, seed=0))


def some_matrices() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    sparse = torch.randn(1, 20, 30, generator=draw)
    sparse[:, ::2] = 0
    sparse[:, :, 1::3] = 0
    return {
        "random": torch.randn(1, 24, 40, generator=draw),
        "tall": torch.randn(1, 40, 24, generator=draw),
        "experts": torch.randn(3, 16, 20, generator=draw),
        "one row": torch.randn(1, 1, 30, generator=draw),
        "power law": power_law(24, 40, 1.0),
        "zeros inside": sparse,
        "constant": torch.full((1, 12, 16), 0.5),
        "outer product": torch.randn(1, 14, 1, generator=draw) * torch.randn(1, 1, 18),
    }


@pytest.mark.parametrize("name", list(some_matrices()))
def test_curve_is_what_each_rank_leaves_of_the_sign_step(name: str) -> None:
    stack = some_matrices()[name]
    dense = stack.double().numpy()
    expected = [reference.sign_step_rest(dense, rank) for rank in RANKS]
    scale = np.abs(dense).sum()
    assert curve(stack) == pytest.approx(expected, rel=1e-9, abs=1e-9 * scale)
    assert curve(stack.mT) == pytest.approx(expected, rel=1e-9, abs=1e-9 * scale)
    assert curve(stack)[0] == pytest.approx(scale)


def test_entries_that_are_mere_rounding_take_no_step() -> None:
    stack = some_matrices()["random"]
    noisy = torch.cat([stack, 1e-9 * stack], dim=-2)
    padded = torch.cat([stack, 0 * stack], dim=-2)
    assert curve(noisy)[1:] == pytest.approx(curve(padded)[1:], rel=1e-6)


def test_a_large_entry_may_gain_more_than_its_sign() -> None:
    signs = torch.sign(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))
    best = torch.from_numpy(reference.truncated(signs.double().numpy(), 1)) * signs
    stack = signs[None].clone()
    stack[0].view(-1)[best.argmax()] *= 1e4
    assert float(best.max()) > 1
    found = curve(stack)
    expected = [reference.sign_step_rest(stack.double().numpy(), rank) for rank in RANKS]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert found[1] < 0 < found[0]


def test_a_sign_step_of_rank_one_is_followed_whole() -> None:
    stack = some_matrices()["outer product"]
    assert curve(stack)[1:] == [0.0] * 4
    assert curve(torch.zeros(2, 6, 8)) == [0.0] * 5


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_a_randomized_decomposition_is_close(decay: float) -> None:
    stack = power_law(300, 400, decay)
    ranks = (1, 4, 16, 64)
    exact, found = curve(stack, ranks, "full"), curve(stack, ranks, "randomized")
    assert exact != found
    for mine, theirs, tolerance in zip(found, exact, (1e-4, 1e-3, 2e-3, 0.02), strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance)


def test_l1_adam_can_choose_modules() -> None:
    run = replace(settings(), plan=PlanSettings(score="l1_adam", rank=RANK, budget="0.25"))
    report = run_report("llama", completions(12), run)
    values = [row.l1_adam for row in report.candidates]
    assert values == sorted(values, key=lambda value: -(value or 0))
    assert report.run.score == "l1_adam"
