"""Ranks per module against trying everything, and what must hold for every plan."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import reports
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import plan

from hlscore.errors import BudgetError, UsageError
from hlscore.planning.allocation import options_of
from hlscore.planning.knapsack import RELATIVE_GAP, Menu, choose_options
from hlscore.planning.memory import lora_params
from hlscore.planning.problem import problem_of
from hlscore.records import ScoreReport
from hlscore.settings import MemorySettings, PlanSettings

Options = list[tuple[float, tuple[float, ...]]]
RANKS = (2, 4, 8, 16)


def any_menus(limits: int) -> st.SearchStrategy[list[Options]]:
    costs = st.tuples(*[st.integers(0, 50).map(float)] * limits)
    option = st.tuples(st.floats(-2, 10, allow_nan=False), costs)
    # Most modules can be left alone.
    alone: Options = [(0.0, (0.0,) * limits)]
    options = st.lists(option, min_size=1, max_size=3)
    several = options | options.map(lambda found: alone + found) | st.just(alone)
    return st.lists(several, min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_choices_against_everything(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 2))
    menus = data.draw(any_menus(count))
    limits = data.draw(st.lists(st.integers(0, 150), min_size=count, max_size=count))
    best = reference.best_options(menus, limits)
    flat = [option for options in menus for option in options]
    menu = Menu(
        modules=np.repeat(np.arange(len(menus)), [len(options) for options in menus]),
        values=np.array([value for value, _ in flat]),
        costs=np.array([costs for _, costs in flat], dtype=np.float64).T,
        limits=np.array(limits, dtype=np.float64),
    )
    if best is None:
        with pytest.raises(BudgetError):
            choose_options(menu)
        return
    found = choose_options(menu)
    scale = max(abs(value) for value, _ in flat) or 1.0
    assert menu.fits(found.picks)
    assert menu.modules[found.picks].tolist() == list(range(len(menus)))
    assert found.value == pytest.approx(menu.values[found.picks].sum())
    assert best - 2 * RELATIVE_GAP * max(abs(best), scale) <= found.value <= best + 1e-9 * scale
    assert found.bound >= best - 1e-9 * max(abs(best), scale)


def model_menu(modules: int, seed: int, share: float) -> Menu:
    """Shapes of a real model, spectra that fall as power laws, ranks up to 64, full."""
    draw = np.random.default_rng(seed)
    out, inputs = (draw.choice([1024, 4096, 14336], modules).astype(float) for _ in range(2))
    ranks = np.array([0, 4, 8, 16, 32, 64])
    costs = np.c_[ranks[None, :] * (out + inputs)[:, None], out * inputs]
    energy, fall = draw.lognormal(0, 1.5, modules), draw.uniform(0.05, 0.4, modules)
    values = np.c_[energy[:, None] * (1 - (1 + ranks[None, :]) ** -fall[:, None]), energy]
    return Menu(
        modules=np.repeat(np.arange(modules), costs.shape[1]),
        values=values.ravel(),
        costs=costs.reshape(1, -1),
        limits=np.array([share * float((out * inputs).sum())]),
    )


@pytest.mark.parametrize(("modules", "seed"), [(252, 0), (252, 1), (252, 2), (10_000, 0)])
def test_models_are_solved_to_the_stated_gap(modules: int, seed: int) -> None:
    found = choose_options(model_menu(modules, seed, 0.1))
    assert 0 <= found.bound - found.value <= RELATIVE_GAP * found.value


@pytest.mark.parametrize("power", [1.0, 0.5, 0.1])
def test_each_rank_is_worth_what_its_curve_says(power: float) -> None:
    report = reports.report(6)
    made = plan(report, ranks=RANKS, budget="0.3p", score="tail", value_power=power)
    value = 0.0
    rows = {row.module: row for row in report.candidates}
    for item in made.modules:
        row = rows[item.module]
        left = 0.0 if item.mode == "full" else row.tail_curve[row.curve_ranks.index(item.rank or 0)]
        value += (row.tail_curve[0] - left) ** power
    assert made.solver.value == pytest.approx(value, rel=1e-5)
    menus = [
        [(0.0, (0.0,)), (row.tail_curve[0] ** power, (float(row.n_params),))]
        + [
            ((row.tail_curve[0] - row.tail_curve[place]) ** power, (lora_params(row, rank),))
            for place, rank in enumerate(row.curve_ranks)
            if rank in RANKS and lora_params(row, rank) < row.n_params
        ]
        for row in report.candidates
    ]
    limit = int(0.3 * sum(row.n_params for row in report.candidates))
    best = reference.best_options(menus, [limit])
    assert best is not None
    assert made.solver.value >= best * (1 - 2 * RELATIVE_GAP)
    assert made.totals.trained_params == made.budget.spent <= made.budget.limit == limit


def test_a_budget_of_modules_also_limits_what_is_trained() -> None:
    made = plan(reports.report(20), ranks=RANKS, budget="0.1")
    whole = made.totals.candidate_params
    assert made.totals.full_modules <= made.budget.limit == 2
    assert made.totals.trained_params <= made.budget.trained_limit == whole // 10


def test_ranks_need_a_curve_that_holds_them() -> None:
    for score in ("taylor", "spectral"):
        with pytest.raises(UsageError, match="a value for each rank"):
            plan(reports.report(9), ranks=RANKS, score=score)
    assert plan(reports.report(9), ranks=RANKS, score="l1_adam", budget="0.2p").totals.lora_modules
    with pytest.raises(UsageError, match="no score for rank 5"):
        plan(reports.report(9), ranks=(4, 5))


@st.composite
def problems(draw: st.DrawFn) -> tuple[ScoreReport, dict[str, Any], list[str]]:
    """A report with random scores, settings, and rising budgets of a random kind."""
    count, seed = draw(st.integers(3, 14)), draw(st.integers(0, 2**16))
    noise = np.random.default_rng(seed)
    base = reports.report(count, resamples=3)
    rows = []
    for row in base.candidates:
        tails = np.sort(noise.lognormal(0, 2, len(row.curve_ranks)))[::-1].tolist()
        out, inputs = noise.integers(8, 200, 2).tolist()
        rows.append(
            replace(
                row,
                tail_curve=tuple(tails),
                out_features=out,
                in_features=inputs,
                n_params=out * inputs,
            )
        )
    params, share = sum(row.n_params for row in rows), draw(st.floats(0.1, 1))
    # 10 M frozen parameters take 20 MB, what is trained up to 20 bytes each.
    budget = draw(
        st.sampled_from(
            [
                lambda part: f"{part}",
                lambda part: f"{part}p",
                lambda part: f"{params * part / 1000}k",
                lambda part: f"{30 + part * 20 * params / 2**20}MiB",
            ]
        )
    )
    memory = MemorySettings(
        optimizer=draw(st.sampled_from(["adamw", "adamw8bit", "sgd"])),
        master=draw(st.sampled_from(["fp32", "bf16"])),
        base_bits=draw(st.sampled_from([4, 16])),
        train_length=16,
    )
    ranks = draw(st.sampled_from([(), (2, 8), RANKS]))
    return (
        replace(base, rows=tuple(rows)),
        {"ranks": ranks, "memory": memory, "score": "tail"},
        [budget(share / 3), budget(share / 2), budget(share)],
    )


@settings(max_examples=100, deadline=None)
@given(problems())
def test_no_plan_exceeds_its_budget_or_gets_worse_with_more(
    problem: tuple[ScoreReport, dict[str, Any], list[str]],
) -> None:
    report, given_settings, budgets = problem
    values = []
    for budget in budgets:
        try:
            made = plan(report, budget=budget, **given_settings)
        except BudgetError:
            assert not values, "a larger budget cannot be too small where a smaller one was not"
            continue
        spent = {"modules": made.totals.full_modules, "bytes": made.memory.total_bytes}
        params = "trained_params" if given_settings["ranks"] else "full_params"
        assert made.budget.spent == spent.get(made.budget.unit, getattr(made.totals, params))
        assert made.budget.spent <= made.budget.limit
        values.append(made.solver.value)
    for smaller, larger in itertools.pairwise(values):
        assert larger >= smaller * (1 - 2 * RELATIVE_GAP)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=len(reports.RANKS), max_size=len(reports.RANKS)),
    st.sampled_from([16, 4]),
    st.integers(8, 400),
)
def test_options_follow_noisy_curves_without_their_noise(
    curve: list[float], bits: int, size: int
) -> None:
    row = replace(
        reports.row(0),
        hls_curve=tuple(curve),
        out_features=size,
        n_params=size * 48,
        in_features=48,
    )
    asked = PlanSettings(ranks=RANKS, rank=4, memory=MemorySettings(base_bits=bits))
    problem = problem_of(replace(reports.report(1), rows=(row,)), asked)
    options, table = options_of(problem, (0,), may_be_full=True)
    assert options[0][0].mode == "frozen"
    values, costs = table[:, 0], table[:, 1:]
    assert values[0] == 0
    assert ((values >= 0) & (values <= max(0.0, curve[0]) ** asked.value_power)).all()
    for one, other in itertools.permutations(range(len(options)), 2):
        if (costs[other] >= costs[one]).all():
            assert values[other] > values[one], "what costs more gains more"
    if curve[0] <= 0:
        assert len(options) == 1, "no signal, nothing to gain"


def test_a_budget_for_ranks_may_be_too_small_for_any_full_module() -> None:
    made = plan(reports.report(20), ranks=RANKS, budget="1k")
    assert made.totals.full_modules == 0
    assert 0 < made.totals.trained_params <= 1000
    locked = plan(reports.report(9), ranks=(2,), budget="0.08", locks=("*=lora",))
    assert locked.budget.limit == 0
