"""At most one of two matrices whose outputs are multiplied is trained in full."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reports

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import write_plan
from hlscore.checks.run import check_plan
from hlscore.planning.make_plan import make_plan
from hlscore.records import ScoreReport
from hlscore.settings import CheckSettings, PlanSettings

NAMES = {"gate_proj": ("gate_proj", "up_proj"), "w1": ("w1", "w3")}


def report(seed: int, *, names: tuple[str, str] = NAMES["gate_proj"]) -> ScoreReport:
    """A report of trials: 2 blocks, scores drawn at random, both matrices of a pair of one size."""
    draw, made = random.Random(seed), reports.report(14)
    rows = []
    for row in made.candidates:
        kind = {"gate_proj": names[0], "up_proj": names[1]}.get(row.kind, row.kind)
        curve = tuple(draw.uniform(-0.2, 1.0) * value for value in row.tail_curve)
        resampled = tuple(draw.uniform(-0.2, 1.0) for _ in row.hls_replicates)
        named = row.module.replace(row.kind, kind)
        rows.append(
            row.changed(
                module=named, parameter=f"{named}.weight", kind=kind, in_features=64,
                n_params=64 * 64, hls_curve=curve, hls=curve[2], hls_replicates=resampled,
            )
        )  # fmt: skip
    run = replace(made.run, settings={"capture": {"movement": "trial"}})
    return replace(made, rows=tuple(rows), run=run)


def plan(found: ScoreReport, **given: Any) -> Plan:
    return make_plan(found, PlanSettings(**{"rank": 4, "budget": "0.3", **given}))


def full(made: Plan) -> set[str]:
    return {item.module for item in made.full}


def best(values: dict[str, float], count: int, names: tuple[str, str]) -> float:
    """The largest sum of positive values of up to so many modules, no pair whole; by trying all."""

    def allowed(chosen: tuple[str, ...]) -> bool:
        return not any(
            name.replace(names[0], names[1]) in chosen for name in chosen if names[0] in name
        )

    sets = (
        chosen
        for size in range(count + 1)
        for chosen in itertools.combinations(values, size)
        if allowed(chosen)
    )
    return max(sum(values[name] for name in chosen) for chosen in sets)


@pytest.mark.parametrize("names", NAMES.values(), ids=list(NAMES))
@pytest.mark.parametrize("budget", ["0.3", "0.3p", "16.5k"])
@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_the_best_with_at_most_one_of_each_pair(
    seed: int, budget: str, names: tuple[str, str]
) -> None:
    found = report(seed, names=names)
    made = plan(found, budget=budget)
    values = {row.module: row.hls_curve[2] for row in found.candidates}
    chosen = full(made)
    assert sum(values[name] for name in chosen) == pytest.approx(best(values, 4, names))
    assert made.solver.value == pytest.approx(sum(values[name] for name in chosen), rel=1e-5)


def test_both_are_allowed_for_gradients_and_on_request() -> None:
    found = report(0)
    scores = {row.module: row.hls_curve[2] for row in found.candidates}
    free = set(sorted(scores, key=lambda name: -scores[name])[:13])
    positive = {name for name in free if scores[name] > 0}
    slopes = replace(found, run=replace(found.run, settings={}))
    for made in (plan(found, budget="1", gated_pairs="both"), plan(slopes, budget="1")):
        assert full(made) == positive
    one = plan(slopes, budget="1", gated_pairs="one")
    assert full(one) == full(plan(found, budget="1")) < positive
    (note,) = (text for text in one.notes if "gated pair" in text)
    assert note.startswith(f"{len(positive - full(one))} modules")


def test_a_locked_module_rules_out_its_partner() -> None:
    found = report(1)
    gate, up = (f"model.layers.0.mlp.{kind}" for kind in NAMES["gate_proj"])
    for locked, other in ((gate, up), (up, gate)):
        made = plan(found, budget="1", locks=(f"{locked}=full",))
        assert locked in full(made)
        assert other not in full(made)
    assert {gate, up} <= full(plan(found, budget="1", locks=(f"{gate}=full", f"{up}=full")))
    scores = {row.module: row.hls_curve[2] for row in found.candidates}
    made = plan(found, budget="1", locks=(f"{gate}=lora",))
    assert (up in full(made)) == (scores[up] > 0 and scores[up] > scores[gate])


def test_resamples_choose_by_the_same_rule() -> None:
    found = report(2)
    made = plan(found, budget="0.3")
    rows = {row.module: row for row in found.candidates}
    table = np.array([row.hls_replicates for row in rows.values()])
    counts = dict.fromkeys(rows, 0)
    for values in table.T:
        order = sorted(zip(values, rows, strict=True), reverse=True)
        taken: list[str] = []
        for value, name in order:
            partner = name.replace("gate_proj", "up_proj") if "gate" in name else None
            partner = name.replace("up_proj", "gate_proj") if "up_proj" in name else partner
            if value > 0 and partner not in taken and len(taken) < 4:
                taken.append(name)
        for name in taken:
            counts[name] += 1
    expected = {name: count / table.shape[1] for name, count in counts.items()}
    assert {item.module: item.selection_probability for item in made.modules} == expected


def test_a_plan_by_the_rule_passes_the_check_and_an_edited_one_does_not(tmp_path: Path) -> None:
    made = plan(report(3))
    write_plan(made, tmp_path / "plan.json")
    assert not [item for item in found_in(tmp_path) if item.code == "HLS505"]
    other = next(item for item in made.modules if item.mode == "lora" and item.kind == "q_proj")
    worst = made.full[-1]
    edited = [
        item.model_copy(update={"score": worst.score and worst.score + 1.0})
        if item is other
        else item
        for item in made.modules
    ]
    write_plan(made.model_copy(update={"modules": edited}), tmp_path / "plan.json")
    assert [item for item in found_in(tmp_path) if item.code == "HLS505"]


def found_in(folder: Path) -> list[Any]:
    return list(check_plan(folder / "plan.json", CheckSettings()).findings)


def experts(scores: tuple[float, float], *, budget: str) -> Plan:
    """A plan for a report in which the modules of one MLP are expert stacks of these scores."""
    made = reports.report(14)
    rows = []
    for row in made.candidates:
        changes: dict[str, object] = {}
        if row.layer == 0 and row.kind in ("gate_proj", "down_proj"):
            score = scores[row.kind == "down_proj"]
            name = f"model.layers.0.mlp.experts.{row.kind}"
            changes = {"module": name, "parameter": name, "form": "experts"}
            changes["hls_curve"] = (score,) * 5
        rows.append(row.changed(**changes))
    return make_plan(replace(made, rows=tuple(rows)), PlanSettings(rank=4, budget=budget))


@pytest.mark.parametrize("budget", ["0.3", "0.3p"])
def test_expert_stacks_of_one_module_are_chosen_together_by_their_sum(budget: str) -> None:
    for scores, chosen in (((100.0, 0.1), True), ((0.1, 100.0), True), ((0.01, 0.01), False)):
        made = experts(scores, budget=budget)
        stacks = [item for item in made.modules if item.form == "experts"]
        assert [item.mode == "full" for item in stacks] == [chosen] * 2
        assert made.budget.spent <= made.budget.limit
        assert len({item.selection_probability for item in stacks}) == 1
