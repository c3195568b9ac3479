"""Standard errors and selection probabilities of whole runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from families import FAMILIES
from problems import by_module, completions, run_report, settings

from hlscore.gradients.bootstrap import draw_resamples
from hlscore.planning.budget import parse_budget
from hlscore.planning.choice import choose
from hlscore.settings import PlanSettings


def test_replicates_stand_around_the_score_and_give_its_columns() -> None:
    model = FAMILIES["llama"].build()
    rows = by_module(run_report(model, completions(24), settings(bootstrap=60, groups=4)).rows)
    for row in rows.values():
        assert len(row.hls_replicates) == 60
        assert np.mean(row.hls_replicates) == pytest.approx(row.hls, rel=1e-3, abs=1e-9)
        assert np.mean(row.tail_replicates) == pytest.approx(row.tail, rel=1e-3)
        assert row.hls_stderr == pytest.approx(np.std(row.hls_replicates, ddof=1), rel=1e-6)
        assert row.hls_ci_low == pytest.approx(np.quantile(row.hls_replicates, 0.025), rel=1e-6)
        assert row.hls_ci_high == pytest.approx(np.quantile(row.hls_replicates, 0.975), rel=1e-6)
        assert row.hls_stderr
        assert 0 <= (row.selection_probability or 0) <= 1


def test_selection_probability_is_the_share_of_resamples() -> None:
    model = FAMILIES["llama"].build()
    rows = list(
        by_module(
            run_report(model, completions(24), settings(bootstrap=40, groups=4)).rows
        ).values()
    )
    budget = parse_budget("0.5")
    params = np.array([row.n_params for row in rows])
    chosen = [
        choose(np.array([row.hls_replicates[draw] for row in rows]), params, budget)
        for draw in range(40)
    ]
    expected = np.mean(chosen, axis=0)
    assert [row.selection_probability for row in rows] == pytest.approx(expected.tolist())


def test_standard_error_shrinks_with_more_probes() -> None:
    model = FAMILIES["llama"].build()
    few = by_module(run_report(model, completions(16), settings(bootstrap=60, groups=4)).rows)
    many = by_module(run_report(model, completions(128), settings(bootstrap=60, groups=4)).rows)
    ratios = [(many[name].hls_stderr or 0) / (row.hls_stderr or 1) for name, row in few.items()]
    assert np.median(ratios) < 0.6


def test_one_group_per_half_has_no_standard_error() -> None:
    rows = by_module(
        run_report(FAMILIES["llama"].build(), completions(2), settings(bootstrap=20)).rows
    )
    assert all(
        row.hls_stderr is None and row.selection_probability is None for row in rows.values()
    )


def test_draws_are_the_same_for_one_seed() -> None:
    first = draw_resamples([1, 2, 3], [4, 5], count=9, seed=4)
    second = draw_resamples([1, 2, 3], [4, 5], count=9, seed=4)
    assert first is not None
    assert second is not None
    assert (first.first == second.first).all()
    assert first.first.sum(1).tolist() == [3.0] * 9


def test_energy_varies_also_where_the_rank_spans_the_matrix() -> None:
    model = FAMILIES["mixtral"].build()
    run = replace(settings(bootstrap=20, groups=4), plan=PlanSettings(rank=4, budget="0.5"))
    rows = by_module(run_report(model, completions(24), run).rows)
    spanned = [row for row in rows.values() if row.max_rank <= 4]
    assert spanned
    for row in spanned:
        assert set(row.hls_replicates) == {0.0}
        assert np.std(row.grad_norm_replicates) > 0
        assert np.mean(row.grad_norm_replicates) == pytest.approx(row.grad_norm, rel=1e-3)
