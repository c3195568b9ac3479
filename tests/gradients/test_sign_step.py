"""`l1_adam` against dense float64 gradients and full SVDs of their signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from families import FAMILIES
from matrices import power_law
from problems import RANK, by_module, completions, halves, probe_set, run_report, settings

from hlscore.gradients.tails import sign_step_curve
from hlscore.settings import PlanSettings

EXAMPLES = completions(12)
RANKS = (0, 1, 2, 5, 12)


def left_over(stack: reference.Matrix, rank: int) -> float:
    """`||G||_1 - <G, P_r(sign G)>`, one full SVD per matrix; what is mere rounding has no sign."""
    total = 0.0
    for g in stack:
        signs = np.sign(g) * (np.abs(g) > 2.0**-23 * np.abs(g).max())
        total += float(np.abs(g).sum() - (g * reference.truncated(signs, rank)).sum())
    return total


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
    expected = [left_over(dense, rank) for rank in RANKS]
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
    assert found == pytest.approx(
        [left_over(stack.double().numpy(), rank) for rank in RANKS], rel=1e-6, abs=1e-8
    )
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


@pytest.mark.parametrize("name", list(FAMILIES))
def test_l1_adam_agrees_with_dense_float64_gradients(name: str) -> None:
    model, run = FAMILIES[name].build(), settings(batch_size=5)
    report = run_report(model, EXAMPLES, run)
    rows = by_module(report.rows)
    oracle, _ = reference.dense_gradients(
        FAMILIES[name].build(dtype=torch.float64),
        halves(probe_set(model, EXAMPLES, run)),
        [row.parameter for row in rows.values()],
    )
    wrong = []
    for row in rows.values():
        dense = oracle[row.parameter].mean
        expected = 0.0 if row.max_rank <= RANK else left_over(dense, RANK)
        # A gradient that is zero up to rounding has either sign.
        if abs((row.l1_adam or 0) - expected) > 1e-3 * np.abs(dense).sum():
            wrong.append((row.module, row.l1_adam, expected))
        assert row.l1_adam_curve[0] == pytest.approx(np.abs(dense).sum(), rel=1e-4)
        assert len(row.l1_adam_curve) == len(row.curve_ranks)
    assert not wrong


def test_l1_adam_can_choose_modules_and_ranks() -> None:
    model = FAMILIES["llama"].build()
    run = replace(settings(), plan=PlanSettings(score="l1_adam", rank=RANK, budget="0.25"))
    report = run_report(model, EXAMPLES, run)
    values = [row.l1_adam for row in report.candidates]
    assert values == sorted(values, key=lambda value: -(value or 0))
    assert report.run.score == "l1_adam"
