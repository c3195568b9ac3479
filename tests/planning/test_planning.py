"""Budgets and choices against trying everything; totals, coverage and notes of a plan."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import reference
import reports
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import SMALL, plan
from reports import row

from hlscore.errors import ArtifactError, BudgetError, UsageError
from hlscore.planning.allocation import Costs, best_per_cost, choose
from hlscore.planning.budget import parse_budget
from hlscore.planning.memory import Choice, lora_params
from hlscore.planning.parts import revise
from hlscore.planning.problem import check_plan_for
from hlscore.records import Candidate, ScoreReport
from hlscore.scores.registry import SCORES
from hlscore.settings import PlanSettings
from hlscore.views.summary import summary
from hlscore.wording import near_whole


@pytest.mark.parametrize(
    ("text", "unit", "share", "amount"),
    [("0.1", "modules", 0.1, 0), ("1", "modules", 1.0, 0), (".25p", "parameters", 0.25, 0),
     ("1e-1 p", "parameters", 0.1, 0), ("500M", "parameters", None, 500_000_000),
     ("1.5B", "parameters", None, 1_500_000_000), ("20k", "parameters", None, 20_000),
     ("24GiB", "bytes", None, 24 * 2**30), ("24 gb", "bytes", None, 24 * 10**9),
     ("0.5TiB", "bytes", None, 2**39), ("512MiB", "bytes", None, 2**29)],
)  # fmt: skip
def test_budgets_are_shares_or_amounts(
    text: str, unit: str, share: float | None, amount: int
) -> None:
    budget = parse_budget(text)
    assert (budget.unit, budget.share, budget.amount) == (unit, share, amount)


@pytest.mark.parametrize(
    "text",
    ["", "abc", "0", "-0.1", "1.01", "nan", "inf", "10%", "0.1q", "p", "0M", "-5M", "24 gigs",
     "1e99GiB", "M", "0.1M B"],
)  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="budget"):
        parse_budget(text)


def test_shares_that_floats_miss_by_a_hair_are_whole() -> None:
    for share, whole, expected in (("0.1", 30, 3), ("0.29", 100, 29), ("0.7", 10, 7)):
        assert parse_budget(share).limit([1] * whole) == expected


@pytest.mark.parametrize(
    ("text", "params", "says", "least"),
    [("0.01", [5] * 42, "less than one module", 1),
     ("0.01p", [70, 30, 100], "less than the smallest", 30)],
)  # fmt: skip
def test_too_small_budget_names_one_that_works(
    text: str, params: list[int], says: str, least: int
) -> None:
    with pytest.raises(BudgetError, match=says) as caught:
        parse_budget(text).check_one_fits(params)
    hinted = caught.value.hint.split()[-1].rstrip(".")
    assert parse_budget(hinted).limit(params) >= least


def _costs(*costs: int) -> Costs:
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


@pytest.mark.parametrize(
    ("scores", "costs", "limit", "chosen"),
    [
        ([3.0, 0.0, -1.0, np.nan], (1, 1, 1, 1), 8, [True, False, False, False]),
        ([3.0, 0.0, -1.0, np.nan], (2, 2, 2, 2), 8, [True, False, False, False]),
        ([3.0, 2.0, 1.0], (-5, 10, 3), 5, [True, True, False]),
    ],
    ids=["no signal", "no signal, by cost", "full that costs no more than LoRA"],
)
def test_choices_at_the_edge(
    scores: list[float], costs: tuple[int, ...], limit: int, chosen: list[bool]
) -> None:
    assert choose(np.array(scores), _costs(*costs), limit)[0].tolist() == chosen


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
    made = plan(reports.report(20))
    totals = made.totals
    full, lora = made.full, made.lora_modules
    assert (totals.full_modules, totals.lora_modules) == (len(full), len(lora)) == (5, 15)
    assert totals.full_params == sum(item.n_params for item in full)
    assert totals.lora_params == sum(lora_params(item, 4) for item in lora)
    assert totals.trained_params == totals.full_params + totals.lora_params
    assert totals.plain_lora_params == sum(lora_params(item, 4) for item in made.modules)
    values = [item.score for item in made.modules]
    assert values == sorted(values, reverse=True)  # type: ignore[type-var]
    assert [item.position for item in made.modules] == list(range(1, 21))
    assert made.stability.mean_reselection is not None
    experts = replace(row(0), matrices=8, out_features=10, in_features=6)
    assert lora_params(experts, 4) == 8 * 4 * 16


@pytest.mark.parametrize("score", list(SCORES))
def test_every_score_can_decide(score: str) -> None:
    base = reports.report(20)
    made = plan(base, score=score)
    assert made.totals.full_modules == 5
    assert all(item.score is not None for item in made.modules)
    drawn = {item.module: SCORES[score].replicates(item) for item in base.candidates}
    for item in made.modules:
        found = drawn[item.module]
        assert item.stderr == (pytest.approx(np.std(found, ddof=1), rel=1e-5) if found else None)


def test_other_rank_of_the_curve_is_planned_without_stability() -> None:
    made = plan(reports.report(20), rank=8)
    assert made.stability.mean_reselection is None
    assert all(item.stderr is None for item in made.modules)
    assert any("no resamples of 'hls' at rank 8" in note for note in made.notes)
    with pytest.raises(UsageError, match="no score for rank 5"):
        plan(reports.report(20), rank=5)


def test_a_report_with_values_that_no_plan_holds_is_named_damaged() -> None:
    found = reports.report(14)
    damaged = replace(found, model=replace(found.model, n_params=-1))
    with pytest.raises(ArtifactError, match=r"a plan cannot hold their"):
        plan(damaged)


def test_memory_budget_holds_everything() -> None:
    report = reports.report(20)
    least = plan(report, baseline="all-lora", memory=SMALL).memory.total_bytes
    most = plan(report, baseline="all-full", memory=SMALL).memory.total_bytes
    for part in (0.0, 0.3, 0.7, 1.0):
        limit = least + part * (most - least)
        made = plan(report, budget=f"{limit / 1000:.3f}kB", memory=SMALL, score="tail")
        assert made.memory.total_bytes == made.budget.spent <= made.budget.limit
        assert made.totals.full_modules == {0.0: 0, 1.0: 20}.get(part, made.totals.full_modules)
    with pytest.raises(BudgetError, match="what has to be trained at least"):
        plan(report, budget=f"{(least - 2000) / 1000}kB", memory=SMALL)
    with pytest.raises(BudgetError, match="frozen weights take") as caught:
        plan(report, budget="1MiB", memory=SMALL)
    assert "--base 4" in caught.value.hint


def test_what_cannot_work_is_refused_before_probing() -> None:
    report = reports.report(9)
    names = [field.name for field in fields(Candidate) if field.name != "quantized"]
    modules = [
        Candidate(**{name: getattr(row, name) for name in names}) for row in report.candidates
    ]
    for bad in ({"budget": "1MiB"}, {"locks": ("nothing=full",)}, {"budget": "0.01"}):
        with pytest.raises(UsageError):
            check_plan_for(report.model, modules, PlanSettings(**bad))  # type: ignore[arg-type]
    check_plan_for(report.model, modules, PlanSettings(budget="0.5"))


def test_alpha_keeps_its_ratio_or_is_refused() -> None:
    made = plan(reports.report(20), ranks=(2, 4, 8), alpha=12, budget="0.3p")
    assert {item.alpha / item.rank for item in made.lora_modules} == {3.0}  # type: ignore[operator]
    with pytest.raises(UsageError, match="no whole alpha"):
        plan(reports.report(9), ranks=(2, 4, 8), alpha=5)


def curved(*curves: tuple[float, ...]) -> ScoreReport:
    """A report whose modules leave so much of their gradients at ranks 0, 2, 4, 8 and 16."""
    found = reports.report(len(curves))
    rows = tuple(
        row.changed(grad_energy=curve[0], tail_curve=curve, hls_curve=curve)
        for row, curve in zip(found.candidates, curves, strict=True)
    )
    return replace(found, rows=rows)


TWO = curved((60.0, 30.0, 6.0, 1.0, 0.5), (40.0, 20.0, 10.0, 2.0, 0.1))


def test_coverage_is_a_share_of_the_energy_and_the_first_line_of_a_plan() -> None:
    made = plan(TWO, budget="1", locks=("*q_proj=full", "*k_proj=lora"))
    assert made.coverage is not None
    assert made.coverage.of == "gradient"
    assert made.coverage.lora == pytest.approx(1 - (6 + 10) / 100)
    assert made.coverage.plan == pytest.approx(1 - (0 + 10) / 100)
    assert summary(made)["reach"] == "LoRA 4 captures 84.0 % of this gradient, the plan 90.0 %"
    frozen = plan(TWO, budget="1", locks=("*q_proj=rank:8", "*k_proj=frozen"))
    assert frozen.coverage is not None
    assert frozen.coverage.plan == pytest.approx(1 - (1 + 40) / 100)

    run = replace(TWO.run, settings={**TWO.run.settings, "capture": {"movement": "trial"}})
    of_trials = plan(replace(TWO, run=run), budget="1")
    assert summary(of_trials)["reach"].startswith("LoRA 4 captures 84.0 % of this update")
    # An export that changes the plan says nothing of it.
    changed = revise(made, [Choice(row=made.full[0], mode="frozen")])
    assert changed.coverage is not None
    assert changed.coverage.plan is None
    assert summary(changed)["reach"] == "LoRA 4 captures 84.0 % of this gradient"

    # Nothing is known without probes.
    assert plan(curved((0.0,) * 5, (0.0,) * 5), budget="1", score="random").coverage is None
    rows = tuple(row.changed(grad_energy=None, tail_curve=()) for row in TWO.rows)
    assert plan(replace(TWO, rows=rows), budget="1", score="snr").coverage is None


def spanned(left: float, side: int) -> ScoreReport:
    """Two modules of a short side that leave so much of their gradients at rank 4."""
    found = curved(*[(1.0, 0.5, left, 0.0, 0.0)] * 2)
    return replace(found, rows=tuple(row.changed(out_features=side) for row in found.rows))


ONE_POSITIVE = curved((1.0,) * 5, *[(-1.0,) * 5] * 3)
FLAT = curved(*[(10.0, 9.0, 8.0, 6.0, 2.0)] * 6)


@pytest.mark.parametrize(
    ("report", "settings", "sign", "said"),
    [
        (ONE_POSITIVE, {"budget": "1"}, "positive", "Only 1 of the modules that fit are trained"),
        (spanned(1e-3, 64), {"budget": "1"}, "next to nothing", ""),
        (spanned(1e-4, 64), {"budget": "1"}, "next to nothing", "LoRA of rank 4 leaves 0.01 % of"),
        (spanned(0.0, 64), {"budget": "1"}, "next to nothing", "LoRA of rank 4 leaves nothing of"),
        (spanned(0.0, 4), {"budget": "1"}, "next to nothing", ""),
        (FLAT, {"budget": "1", "ranks": (2, 4), "locks": ("*=rank:4", "*q_proj=rank:2")},
         "largest rank", ""),
        (FLAT, {"budget": "3k", "ranks": (2, 4)}, "largest rank", "of rank 4. Add larger ranks"),
    ],
    ids=["little signal", "enough left", "little left", "nothing left", "whole matrix",
         "locked ranks", "highest ranks"],
)  # fmt: skip
def test_notes(report: ScoreReport, settings: dict[str, Any], sign: str, said: str) -> None:
    notes = [note for note in plan(report, **settings).notes if sign in note]
    assert [said in note for note in notes] == [True] * bool(said)


def test_shares_near_one_keep_two_digits_of_what_is_missing() -> None:
    shown = {0.5: "50.0 %", 0.9927: "99.27 %", 0.923: "92.3 %", 0.99996: "99.9960 %", 1.0: "100 %"}
    assert {share: near_whole(share) for share in shown} == shown
