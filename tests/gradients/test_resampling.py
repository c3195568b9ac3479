"""Standard errors and selection probabilities of whole runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import FAMILIES
from problems import RANK, completions, scored, settings

from hlscore.gradients.jackknife import draw_resamples
from hlscore.planning.allocation import choose
from hlscore.settings import PlanSettings

ESTIMATORS = pytest.mark.parametrize("estimator", ["exact", "sketch"])


@ESTIMATORS
def test_replicates_stand_around_the_score_and_give_its_columns(estimator: str) -> None:
    model, run = FAMILIES["llama"].build(), settings(bootstrap=60, groups=4, estimator=estimator)
    rows = scored(model, completions(24), run)
    for row in rows.values():
        assert len(row.hls_replicates) == 60
        # A replicate is the score plus influences times draws beyond once: the mean of 60 of
        # them stands within a few of its own standard errors of the score.
        for replicates, value in (
            (row.hls_replicates, row.hls),
            (row.tail_replicates, row.tail),
            (row.grad_norm_replicates, row.grad_norm),
        ):
            spread = np.std(replicates, ddof=1) / 60**0.5
            assert abs(np.mean(replicates) - value) < 4 * spread
        assert row.hls_stderr
        assert row.hls_stderr == pytest.approx(np.std(row.hls_replicates, ddof=1), rel=1e-6)
        assert row.hls_ci_low == pytest.approx(np.quantile(row.hls_replicates, 0.025), rel=1e-6)
        assert row.hls_ci_high == pytest.approx(np.quantile(row.hls_replicates, 0.975), rel=1e-6)

    # The selection probability is the share of resamples in which a module makes the budget.
    costs = np.ones(len(rows), np.int64)
    draws = np.array([row.hls_replicates for row in rows.values()]).T
    chosen = [choose(values, costs, len(rows) // 2)[0] for values in draws]
    expected = np.mean(chosen, axis=0).tolist()
    assert [row.selection_probability for row in rows.values()] == pytest.approx(expected)


def test_exact_and_sketched_standard_errors_are_alike() -> None:
    # Both come from sketches of the groups; without a real sketch they are the same.
    model = FAMILIES["qwen3_moe"].build()
    run = {"bootstrap": 60, "groups": 4, "sketch_size": 256}
    exact, sketch = (
        scored(model, completions(24), settings(estimator=estimator, **run))
        for estimator in ("exact", "sketch")
    )
    for name, row in exact.items():
        scale = (row.hls_stderr or 0) + 1e-12
        assert sketch[name].hls_stderr == pytest.approx(row.hls_stderr, abs=1e-2 * scale)


def test_one_group_per_half_has_no_standard_error() -> None:
    rows = scored("llama", completions(2), settings(bootstrap=20))
    assert {(row.hls_stderr, row.selection_probability) for row in rows.values()} == {(None, None)}


def test_draws_are_the_same_for_one_seed_and_need_two_groups() -> None:
    first, second = (draw_resamples([1, 2, 3], [4, 5], count=9, seed=4) for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.first == second.first).all()
    assert first.first.sum(1).tolist() == [3.0] * 9
    assert draw_resamples([5], [8, 4], count=10, seed=0) is None
    assert draw_resamples([5, 6], [8, 4], count=0, seed=0) is None


def test_replicates_have_the_variance_of_the_influence() -> None:
    draws = draw_resamples([1] * 5, [1] * 7, count=20_000, seed=0)
    assert draws is not None
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(size, generator=generator, dtype=torch.float64) for size in (5, 7)]
    # Jackknife influences sum to zero in each half, but for the shrinkage they share.
    influence = torch.cat([part - part.mean() for part in values])
    drawn = draws.replicates(3.0, influence)
    assert float(drawn.mean()) == pytest.approx(3.0, abs=0.1)
    assert float(drawn.var()) == pytest.approx(float(influence.square().sum()), rel=0.05)


@ESTIMATORS
def test_energy_varies_also_where_the_rank_spans_the_matrix(estimator: str) -> None:
    model = FAMILIES["mixtral"].build()
    options = settings(bootstrap=20, groups=4, estimator=estimator)
    run = replace(options, plan=PlanSettings(rank=4, budget="0.5"))
    rows = scored(model, completions(24), run)
    spanned = [row for row in rows.values() if row.max_rank <= 4]
    assert spanned
    for row in spanned:
        assert set(row.hls_replicates) == {0.0}
        assert set(row.tail_replicates) == {0.0}
        spread = np.std(row.grad_norm_replicates, ddof=1)
        assert spread > 0
        assert abs(np.mean(row.grad_norm_replicates) - row.grad_norm) < 4 * spread / 20**0.5


def test_replicates_do_not_depend_on_batches() -> None:
    run = {"bootstrap": 20, "groups": 4, "estimator": "sketch"}
    found = [scored("gpt2", completions(24), settings(batch_size=n, **run)) for n in (1, 8)]
    for name, row in found[0].items():
        other = found[1][name]
        # Group sketches are kept in bfloat16.
        scale = np.std(row.hls_replicates)
        assert row.max_rank <= RANK or scale > 0
        np.testing.assert_allclose(row.hls_replicates, other.hls_replicates, atol=0.05 * scale)
