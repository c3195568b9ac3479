"""Budgets and choices against trying everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reports import RANKS, report, row

from hlscore.errors import ArtifactError, BudgetError, UsageError
from hlscore.planning.budget import parse_budget
from hlscore.planning.make_plan import make_plan
from hlscore.planning.memory import lora_params
from hlscore.planning.uniform import best_per_cost, choose
from hlscore.records import ScoreReport
from hlscore.scores.registry import SCORES
from hlscore.settings import PlanSettings


@pytest.mark.parametrize(
    ("text", "share", "unit"),
    [("0.1", 0.1, "modules"), ("1", 1.0, "modules"), (".25p", 0.25, "parameters"),
     ("1e-1 p", 0.1, "parameters")],
)  # fmt: skip
def test_budgets_are_shares(text: str, share: float, unit: str) -> None:
    budget = parse_budget(text)
    assert (budget.share, budget.unit) == (share, unit)


@pytest.mark.parametrize(
    "text",
    ["", "abc", "0", "-0.1", "1.01", "nan", "inf", "10%", "0.1q", "p", "0M", "-5M", "24 gigs",
     "1e99GiB", "M", "0.1M B"],
)  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="budget"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [("500M", 500_000_000, "parameters"), ("1.5B", 1_500_000_000, "parameters"),
     ("20k", 20_000, "parameters"), ("24GiB", 24 * 2**30, "bytes"), ("24 gb", 24 * 10**9, "bytes"),
     ("0.5TiB", 2**39, "bytes"), ("512MiB", 2**29, "bytes")],
)  # fmt: skip
def test_budgets_are_amounts(text: str, amount: int, unit: str) -> None:
    budget = parse_budget(text)
    assert (budget.amount, budget.share, budget.unit) == (amount, None, unit)


def test_shares_that_floats_miss_by_a_hair_are_whole() -> None:
    for share, whole, expected in (("0.1", 30, 3), ("0.29", 100, 29), ("0.7", 10, 7)):
        assert parse_budget(share).limit([1] * whole) == expected


def test_too_small_budget_names_one_that_works() -> None:
    with pytest.raises(BudgetError, match="less than one module") as caught:
        parse_budget("0.01").check_one_fits([5] * 42)
    hinted = caught.value.hint.split()[-1].rstrip(".")
    assert parse_budget(hinted).limit([5] * 42) == 1
    with pytest.raises(BudgetError, match="less than the smallest") as caught:
        parse_budget("0.01p").check_one_fits([70, 30, 100])
    hinted = caught.value.hint.split()[-1].rstrip(".")
    assert parse_budget(hinted).limit([70, 30, 100]) >= 30


def _costs(*costs: int) -> NDArray[np.int64]:
    return np.array(costs, dtype=np.int64)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-1, 10, allow_nan=False), st.integers(1, 1000)), min_size=2, max_size=9
    ),
    st.floats(0.05, 1),
)
def test_knapsack_finds_the_best_set(modules: list[tuple[float, int]], share: float) -> None:
    scores, params = [m[0] for m in modules], [m[1] for m in modules]
    limit = int(share * sum(params))
    chosen, bound = choose(np.array(scores), _costs(*params), limit)
    assert np.array(params)[chosen].sum() <= limit
    best = reference.best_choice(scores, params, limit)
    value = np.array(scores)[chosen].sum()
    assert value >= best - 1e-4 * max(abs(best), max(scores, default=0))
    assert bound >= best - 1e-5 * max(abs(best), 1e-30)


@given(st.lists(st.floats(-1, 10), min_size=2, max_size=30), st.floats(0.1, 1))
def test_module_budget_takes_the_highest(scores: list[float], share: float) -> None:
    limit = int(share * len(scores))
    found, _ = choose(np.array(scores), _costs(*[1] * len(scores)), limit)
    expected = [value for value in sorted(scores, reverse=True)[:limit] if value > 0]
    assert sorted(np.array(scores)[found], reverse=True) == expected


@pytest.mark.parametrize("cost", [1, 2])
def test_modules_without_signal_are_never_selected(cost: int) -> None:
    scores = np.array([3.0, 0.0, -1.0, np.nan])
    found, _ = choose(scores, _costs(*[cost] * 4), 8)
    assert found.tolist() == [True] + [False] * 3


def test_full_that_costs_no_more_than_lora_is_always_selected() -> None:
    found, _ = choose(np.array([3.0, 2.0, 1.0]), _costs(-5, 10, 3), 5)
    assert found.tolist() == [True, True, False]


def test_resamples_come_near_the_best_choice() -> None:
    draw = np.random.default_rng(0)
    params = draw.choice([1 << 18, 1 << 20, 1 << 22, 3 << 21], size=300)
    scores = np.abs(draw.standard_t(3, size=(300, 4)))
    costs, limit = _costs(*params), int(0.1 * params.sum())
    whole = np.mean([choose(column, costs, limit)[0] @ column for column in scores.T])
    taken = [best_per_cost(column, costs, limit) for column in scores.T]
    quick = np.mean([chosen @ column for chosen, column in zip(taken, scores.T, strict=True)])
    assert whole * (1 - 2e-3) <= quick <= whole * (1 + 1e-9)
    assert all(params[chosen].sum() <= limit for chosen in taken)


def test_allocation_adds_up() -> None:
    made = make_plan(report(20), PlanSettings(budget="0.25", rank=4))
    totals = made.totals
    full = [item for item in made.modules if item.mode == "full"]
    lora = [item for item in made.modules if item.mode == "lora"]
    assert (totals.full_modules, totals.lora_modules) == (len(full), len(lora)) == (5, 15)
    assert totals.full_params == sum(item.n_params for item in full)
    assert totals.lora_params == sum(lora_params(item, 4) for item in lora)
    assert totals.trained_params == totals.full_params + totals.lora_params
    assert totals.plain_lora_params == sum(lora_params(item, 4) for item in made.modules)
    values = [item.score for item in made.modules]
    assert values == sorted(values, reverse=True)  # type: ignore[type-var]
    assert [item.position for item in made.modules] == list(range(1, 21))
    assert made.stability.mean_reselection is not None


@pytest.mark.parametrize("score", list(SCORES))
def test_every_score_can_decide(score: str) -> None:
    made = make_plan(report(20), PlanSettings(budget="0.25", score=score, rank=4))
    assert made.totals.full_modules == 5
    assert all(item.score is not None for item in made.modules)


def test_other_rank_of_the_curve_is_planned_without_stability() -> None:
    made = make_plan(report(20), PlanSettings(budget="0.25", rank=8))
    assert made.stability.mean_reselection is None
    assert any("no resamples of 'hls' at rank 8" in note for note in made.notes)
    with pytest.raises(UsageError, match="no score for rank 5"):
        make_plan(report(20), PlanSettings(budget="0.25", rank=5))


def test_plan_with_little_signal_says_so() -> None:
    base = report(4)
    rows = (base.rows[0], *(replace(r, hls_curve=(-1.0,) * len(RANKS)) for r in base.rows[1:]))
    made = make_plan(
        ScoreReport(rows=rows, model=base.model, probes=base.probes, run=base.run),
        PlanSettings(budget="1", rank=4),
    )
    assert made.totals.full_modules == 1
    assert any("has a positive" in note for note in made.notes)


def test_lora_of_experts_counts_each_expert() -> None:
    assert lora_params(replace(row(0), matrices=8, out_features=10, in_features=6), 4) == 8 * 4 * 16


def test_every_score_with_replicates_has_a_standard_error() -> None:
    base = report(12)
    for name in ("hls", "tail", "grad_norm", "rgn"):
        made = make_plan(base, PlanSettings(budget="0.25", score=name, rank=4))
        drawn = {item.module: SCORES[name].replicates(item) for item in base.candidates}
        for item in made.modules:
            assert item.stderr == pytest.approx(np.std(drawn[item.module], ddof=1), rel=1e-5)
    made = make_plan(base, PlanSettings(budget="0.25", score="taylor", rank=4))
    assert all(item.stderr is None for item in made.modules)
    made = make_plan(base, PlanSettings(budget="0.25", rank=8))
    assert all(item.stderr is None for item in made.modules)


def test_a_report_with_values_that_no_plan_holds_is_named_damaged() -> None:
    found = report(14)
    damaged = replace(found, model=replace(found.model, n_params=-1))
    with pytest.raises(ArtifactError, match=r"a plan cannot hold their"):
        make_plan(damaged, PlanSettings(budget="0.2", rank=4))
