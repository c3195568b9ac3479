"""Pinned modules, tied and unreached weights, plans to compare with."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import reports
from planned import SMALL, full, modes, plan

from hlscore.errors import BudgetError, UsageError
from hlscore.planning.memory import lora_params
from hlscore.records import ScoreReport


@pytest.mark.parametrize("ranks", [(), (2, 4, 8)])
def test_locks_decide_and_the_last_one_counts(ranks: tuple[int, ...]) -> None:
    locks = ("*.down_proj=full", "*.0.*=frozen", "*.0.*q_proj=rank:2", "*.1.*.k_proj=lora")
    made = plan(reports.report(21), ranks=ranks, locks=locks, budget="0.3p")
    found = modes(made)
    assert found["model.layers.0.mlp.down_proj"] == ("frozen", 0)
    assert found["model.layers.1.mlp.down_proj"] == ("full", 0)
    assert found["model.layers.0.self_attn.q_proj"] == ("lora", 2)
    assert found["model.layers.1.self_attn.k_proj"][0] == "lora"
    locked = {item.module for item in made.modules if item.locked}
    assert len(locked) == 7 + 2 + 1
    assert made.budget.spent <= made.budget.limit
    assert all(item.selection_probability is None for item in made.modules if item.locked)


def test_locked_modules_take_from_the_budget() -> None:
    free = plan(reports.report(20))
    locked = plan(reports.report(20), locks=("model.layers.2.*.q_proj=full",))
    assert free.totals.full_modules == locked.totals.full_modules == 5
    assert modes(locked)["model.layers.2.self_attn.q_proj"] == ("full", 0)
    with pytest.raises(BudgetError, match="--lock asks for 20 modules in full"):
        plan(reports.report(20), locks=("*=full",))
    with pytest.raises(BudgetError, match=r"--lock asks for at least .* allows"):
        plan(reports.report(20), budget="0.1p", ranks=(2, 4), locks=("*=full",))


@pytest.mark.parametrize(
    "lock", ["", "=full", "q_proj", "*=half", "*=rank:", "*=rank:0", "*=rank:x", "*=rank:99999",
             "nothing*=full"]
)  # fmt: skip
def test_other_locks_are_refused(lock: str) -> None:
    with pytest.raises(UsageError, match="--lock"):
        plan(reports.report(9), locks=(lock,))


@pytest.mark.parametrize("given", [{}, {"ranks": (2, 4)}, {"baseline": "all-lora"}])
def test_a_tied_weight_never_gets_lora(given: dict[str, Any]) -> None:
    report = reports.report(8)
    tied = report.candidates[0].module
    head = replace(report.rows[-1], left_out="tied", tied_to=tied)
    report = replace(report, rows=(*report.rows[:-1], head))
    made = plan(report, locks=() if given else (f"{report.candidates[1].module}=full",), **given)
    assert modes(made)[tied][0] in ("full", "frozen")
    with pytest.raises(UsageError, match="tied"):
        plan(report, locks=(f"{tied}=lora",), ranks=given.get("ranks", ()))


UNREACHED = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj")


def with_unreached() -> ScoreReport:
    """A report in which no gradient reaches two modules, though one has the best `random`."""
    base = reports.report(20)
    empty = {"status": "unreached", "matrices_reached": 0, "hls": 0.0, "tail": 0.0, "random": 1.0}
    rows = tuple(row.changed(**empty) if row.module in UNREACHED else row for row in base.rows)
    return replace(base, rows=rows)


@pytest.mark.parametrize("baseline", [None, "all-lora", "all-full", "lora-matched", "random"])
@pytest.mark.parametrize(("ranks", "budget"), [((), "0.9"), ((), "1GiB"), ((2, 4, 8), "0.5p")])
def test_what_the_loss_never_reaches_stays_frozen(
    baseline: Any, ranks: tuple[int, ...], budget: str
) -> None:
    made = plan(with_unreached(), baseline=baseline, ranks=ranks, budget=budget, memory=SMALL)
    found = modes(made)
    assert [found[module] for module in UNREACHED] == [("frozen", 0)] * 2
    assert made.totals.full_modules + made.totals.lora_modules > 10
    (note,) = (text for text in made.notes if "No probe gradient" in text)
    assert all(module in note for module in UNREACHED)


@pytest.mark.parametrize("ranks", [(), (2, 4, 8)])
def test_a_lock_trains_what_the_loss_never_reaches(ranks: tuple[int, ...]) -> None:
    locks = (f"{UNREACHED[0]}=full", f"{UNREACHED[1]}=rank:4")
    made = plan(with_unreached(), ranks=ranks, locks=locks)
    assert [modes(made)[module] for module in UNREACHED] == [("full", 0), ("lora", 4)]
    assert not any("No probe gradient" in note for note in made.notes)


def test_a_lora_baseline_trains_as_much_as_the_plan() -> None:
    report = reports.report(40)
    hybrid, matched = plan(report), plan(report, baseline="lora-matched")
    (rank,) = {item.rank for item in matched.modules}
    trained = [
        sum(lora_params(row, r) for row in report.candidates) for r in (rank - 1, rank, rank + 1)
    ]
    distances = [abs(number - hybrid.totals.trained_params) for number in trained]
    assert distances[1] == min(distances)
    assert matched.totals.trained_params == trained[1]
    assert (matched.method, matched.modules[0].alpha) == ("lora-matched", 2 * rank)


@pytest.mark.parametrize("budget", ["0.25", "0.25p", "60k", "23MiB"])
def test_a_random_baseline_spends_as_much_and_spreads_over_kinds_and_sizes(budget: str) -> None:
    report = reports.report(168)
    hybrid, drawn = (
        plan(report, budget=budget, baseline=name, memory=SMALL, score="tail")
        for name in (None, "random")
    )
    assert drawn.budget.counts == hybrid.budget.counts
    assert 0.9 * hybrid.totals.full_params <= drawn.totals.full_params
    assert drawn.budget.spent <= hybrid.budget.spent <= hybrid.budget.limit == drawn.budget.limit
    if budget == "0.25":
        assert drawn.totals.full_modules == hybrid.totals.full_modules
    assert full(drawn) != full(hybrid)
    for field in ("kind", "n_params"):
        counts = Counter(getattr(item, field) for item in drawn.modules)
        chosen = Counter(getattr(item, field) for item in drawn.modules if item.mode == "full")
        shares = [chosen[value] / number for value, number in counts.items()]
        assert max(shares) - min(shares) < 0.35, (field, shares)


@pytest.mark.parametrize("budget", ["0.25", "0.25p", "20.5MiB"])
def test_a_random_baseline_of_ranks_costs_exactly_the_same(budget: str) -> None:
    report = reports.report(56)
    given: dict[str, Any] = {"budget": budget, "ranks": (2, 4, 8), "memory": SMALL, "score": "tail"}
    chosen, drawn = plan(report, **given), plan(report, **given, baseline="random")
    assert modes(chosen) != modes(drawn)
    assert chosen.totals == drawn.totals
    assert chosen.memory == drawn.memory
    assert chosen.budget.spent == drawn.budget.spent


@pytest.mark.parametrize("budget", ["0.25", "0.25p", "20MiB"])
def test_alike_baselines_state_the_budget_and_keep_locks(budget: str) -> None:
    report = reports.report(21)
    for name, expected in (("all-lora", ("lora", 4)), ("all-full", ("full", 0))):
        made = plan(report, budget=budget, baseline=name, locks=("*q_proj=frozen",), memory=SMALL)
        assert set(modes(made).values()) == {expected, ("frozen", 0)}
        assert made.budget.limit == plan(report, budget=budget, memory=SMALL).budget.limit
        spent = {
            "modules": made.totals.full_modules,
            "parameters": made.totals.full_params,
            "bytes": made.memory.total_bytes,
        }
        assert made.budget.spent == spent[made.budget.unit]
    over = plan(report, budget="0.25p", baseline="all-full")
    assert any("more than the budget" in note for note in over.notes)


def test_the_largest_modules_are_a_baseline_of_as_many_parameters() -> None:
    report = reports.report(42)
    largest = plan(report, baseline="largest")
    rest = [item.n_params for item in largest.modules if item.mode != "full"]
    assert len(largest.full) == plan(report).totals.full_modules
    assert min(item.n_params for item in largest.full) >= max(rest)
    assert plan(report, baseline="largest").modules == largest.modules
    # Modules of one size are not taken in the order of the score.
    turned = replace(report, rows=tuple(reversed(report.rows)))
    assert full(plan(turned, baseline="largest")) == full(largest)
    with pytest.raises(UsageError, match="--ranks chooses ranks"):
        plan(report, baseline="largest", ranks=(2, 4))


def test_draws_among_the_largest_take_no_smaller_module() -> None:
    report = reports.report(42)
    sizes = sorted((row.n_params for row in report.candidates), reverse=True)
    drawn = plan(report, baseline="random-largest")
    assert len(drawn.full) == plan(report).totals.full_modules
    assert min(item.n_params for item in drawn.full) >= sizes[len(drawn.full) - 1]
    other = replace(report, run=replace(report.run, seed=report.run.seed + 1))
    assert full(plan(other, baseline="random-largest")) != full(drawn)


def test_the_last_layers_are_a_baseline_of_the_largest_modules_from_the_end() -> None:
    report = reports.report(42)
    last = plan(report, baseline="last-layers")
    sizes = sorted((row.n_params for row in report.candidates), reverse=True)
    smallest = sizes[len(last.full) - 1]
    assert len(last.full) == plan(report).totals.full_modules
    assert min(item.n_params for item in last.full) >= smallest
    left = [item for item in last.modules if item.mode != "full" and item.n_params >= smallest]
    assert left
    assert min(item.layer or 0 for item in last.full) >= max(item.layer or 0 for item in left)
    assert plan(report, baseline="last-layers").modules == last.modules


def test_a_least_rank_leaves_no_module_frozen() -> None:
    report = reports.report(21)
    free = plan(report, ranks=(2, 4, 8), budget="0.05p")
    floored = plan(report, ranks=(2, 4, 8), budget="0.3p", min_rank=2)
    assert any(item.mode == "frozen" for item in free.modules)
    assert all(item.mode == "full" or item.rank >= 2 for item in floored.modules)
    assert floored.budget.spent <= floored.budget.limit
    with pytest.raises(UsageError, match="--min-rank 3 is not one of --ranks 2,4,8"):
        plan(report, ranks=(2, 4, 8), min_rank=3)
    with pytest.raises(UsageError, match="--min-rank is for plans"):
        plan(report, min_rank=1)
