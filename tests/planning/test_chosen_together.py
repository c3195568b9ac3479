"""What is chosen together: one module of each gated pair, all expert stacks of a module."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import reports
from planned import SMALL, full, plan

from hlscore.artifacts.plan_file import write_plan
from hlscore.checks.run import check_plan
from hlscore.planning.memory import Choice, memory_use
from hlscore.records import ScoreReport
from hlscore.settings import CheckSettings

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


def best(values: dict[str, float], count: int, names: tuple[str, str]) -> float:
    """The largest sum of positive values of up to so many modules, no pair whole; by trying all."""
    return max(
        sum(values[name] for name in chosen)
        for size in range(count + 1)
        for chosen in itertools.combinations(values, size)
        if not any(name.replace(*names) in chosen for name in chosen if names[0] in name)
    )


@pytest.mark.parametrize("names", NAMES.values(), ids=list(NAMES))
@pytest.mark.parametrize("budget", ["0.3", "0.3p"])
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_the_best_with_at_most_one_of_each_pair(
    seed: int, budget: str, names: tuple[str, str]
) -> None:
    found = report(seed, names=names)
    made = plan(found, budget=budget, gated_pairs="one")
    values = {row.module: row.hls_curve[2] for row in found.candidates}
    chosen = full(made)
    assert sum(values[name] for name in chosen) == pytest.approx(best(values, 4, names))
    assert made.solver.value == pytest.approx(sum(values[name] for name in chosen), rel=1e-5)


def test_both_are_allowed_unless_asked_for() -> None:
    found = report(0)
    scores = {row.module: row.hls_curve[2] for row in found.candidates}
    positive = {name for name, score in scores.items() if score > 0}
    assert full(plan(found, budget="1")) == positive
    one = plan(found, budget="1", gated_pairs="one")
    assert full(one) < positive
    (note,) = (text for text in one.notes if "gated pair" in text)
    assert note.startswith(f"{len(positive - full(one))} modules")


def test_ranks_by_trials_say_what_is_known_of_them() -> None:
    found = report(0)
    slopes = replace(found, run=replace(found.run, settings={}))
    known = "did no better than one rank of equal cost"
    assert any(known in note for note in plan(found, budget="0.3p", ranks=(2, 4)).notes)
    assert not any(known in note for note in plan(slopes, budget="0.3p", ranks=(2, 4)).notes)


def test_a_locked_module_rules_out_its_partner() -> None:
    found = report(1)
    gate, up = (f"model.layers.0.mlp.{kind}" for kind in NAMES["gate_proj"])
    for locked, other in ((gate, up), (up, gate)):
        made = plan(found, budget="1", gated_pairs="one", locks=(f"{locked}=full",))
        assert locked in full(made)
        assert other not in full(made)
    assert {gate, up} <= full(plan(found, budget="1", locks=(f"{gate}=full", f"{up}=full")))
    scores = {row.module: row.hls_curve[2] for row in found.candidates}
    made = plan(found, budget="1", gated_pairs="one", locks=(f"{gate}=lora",))
    assert (up in full(made)) == (scores[up] > 0 and scores[up] > scores[gate])


def test_resamples_choose_by_the_same_rule() -> None:
    found = report(2)
    drawn = {row.module: row.hls_replicates for row in found.candidates}
    count = len(next(iter(drawn.values())))
    chosen: Counter[str] = Counter()
    for at in range(count):
        taken: list[str] = []
        for name in sorted(drawn, key=lambda name: -drawn[name][at]):
            swapped = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
            kind = name.rpartition(".")[2]
            partner = name.replace(kind, swapped.get(kind, "none"))
            if drawn[name][at] > 0 and partner not in taken and len(taken) < 4:
                taken.append(name)
        chosen.update(taken)
    expected = {name: chosen[name] / count for name in drawn}
    made = plan(found, budget="0.3", gated_pairs="one")
    assert {item.module: item.selection_probability for item in made.modules} == expected


def test_a_plan_by_the_rule_passes_the_check_and_an_edited_one_does_not(tmp_path: Path) -> None:
    made = plan(report(3), budget="0.3", gated_pairs="one")
    other = next(item for item in made.modules if item.mode == "lora" and item.kind == "q_proj")
    better = other.model_copy(update={"score": (made.full[-1].score or 0.0) + 1.0})
    edited = [better if item is other else item for item in made.modules]
    for modules, expected in ((made.modules, False), (edited, True)):
        write_plan(made.model_copy(update={"modules": modules}), tmp_path / "plan.json")
        found = check_plan(tmp_path / "plan.json", CheckSettings()).findings
        assert any(item.rule.code == "HLS505" for item in found) == expected


def with_experts(made: ScoreReport, curves: dict[str, tuple[float, ...]]) -> ScoreReport:
    """A report in which modules of the first MLP are two experts each, with these curves."""
    rows = []
    for row in made.candidates:
        changes: dict[str, object] = {}
        if row.layer == 0 and row.kind in curves:
            name = f"model.layers.0.mlp.experts.{row.kind}"
            changes = {"module": name, "parameter": name, "form": "experts", "matrices": 2}
            changes |= {"n_params": 2 * row.n_params, "hls_curve": curves[row.kind]}
        rows.append(row.changed(**changes))
    return replace(made, rows=tuple(rows))


@pytest.mark.parametrize("budget", ["0.3", "0.3p"])
def test_expert_stacks_of_one_module_are_chosen_together_by_their_sum(budget: str) -> None:
    for gate, down, chosen in ((100.0, 0.1, True), (0.1, 100.0, True), (0.01, 0.01, False)):
        curves = {"gate_proj": (gate,) * 5, "down_proj": (down,) * 5}
        made = plan(with_experts(reports.report(14), curves), budget=budget, gated_pairs="both")
        stacks = [item for item in made.modules if item.form == "experts"]
        assert [item.mode == "full" for item in stacks] == [chosen] * 2
        assert made.budget.spent <= made.budget.limit
        assert len({item.selection_probability for item in stacks}) == 1


def random_experts(seed: int) -> ScoreReport:
    """Two expert stacks and three other modules with random curves."""
    draw, made = random.Random(seed), reports.report(7)
    rows = [
        row.changed(
            hls_curve=tuple(sorted((draw.lognormvariate(0, 1.5) for _ in range(5)), reverse=True))
        )
        for row in made.candidates
    ]
    stacks = {row.kind: row.hls_curve for row in rows if row.kind in ("gate_proj", "down_proj")}
    return with_experts(replace(made, rows=(*rows[2:], *made.rows[7:])), stacks)


@pytest.mark.parametrize("budget", ["0.6", "0.6p", "22MiB"])
@pytest.mark.parametrize("seed", [0, 2, 4])
def test_ranks_of_expert_stacks_are_the_best_of_all(seed: int, budget: str) -> None:
    """Both stacks in full or neither, with ranks of their own; by trying everything."""
    found = random_experts(seed)
    made = plan(found, budget=budget, ranks=(2, 4), memory=SMALL)
    kinds = [("frozen", 0), ("lora", 2), ("lora", 4), ("full", 0)]
    best = 0.0
    for modes in itertools.product(kinds, repeat=5):
        choices = [
            Choice(row=row, mode=mode, rank=rank)  # type: ignore[arg-type]
            for row, (mode, rank) in zip(found.candidates, modes, strict=True)
        ]
        stacks = [item.mode for item in choices if item.row.form == "experts"]
        trained = sum(item.trained_params for item in choices)
        fits = {
            "modules": [item.mode for item in choices].count("full") <= made.budget.limit
            and trained <= (made.budget.trained_limit or 0),
            "parameters": trained <= made.budget.limit,
            "bytes": memory_use(found.model, choices, SMALL).total_bytes <= made.budget.limit,
        }
        if fits[made.budget.unit] and stacks.count("full") in (0, 2):
            gains = (
                item.row.hls_curve[0]  # type: ignore[attr-defined]
                - (0.0 if item.mode == "full" else item.row.hls_curve[item.rank // 2])  # type: ignore[attr-defined]
                for item in choices
            )
            best = max(best, sum(gain**0.25 for gain in gains))
    assert best * (1 - 2e-4) <= made.solver.value <= best * (1 + 1e-5)
    assert len({item.mode == "full" for item in made.modules if item.form == "experts"}) == 1


@pytest.mark.parametrize("lock", ["*experts.gate_proj=full", "*experts.gate_proj=frozen"])
def test_a_locked_stack_leaves_the_others_their_ranks(lock: str) -> None:
    ranks: dict[str, object] = {"ranks": (2, 4)}
    for given in (ranks, ranks | {"min_rank": 2}, {"gated_pairs": "both"}):
        made = plan(random_experts(0), budget="1", locks=(lock,), **given)
        stacks = {item.kind: item.mode for item in made.modules if item.form == "experts"}
        assert stacks == {"gate_proj": lock.rpartition("=")[2], "down_proj": "lora"}


def test_a_random_baseline_of_ranks_keeps_stacks_together() -> None:
    made = reports.report(42)
    rows = []
    for row in made.candidates:
        name = f"model.layers.{row.layer}.mlp.experts.{row.kind}"
        stack = {"module": name, "parameter": name, "form": "experts", "in_features": 64,
                 "n_params": 64 * 64}  # fmt: skip
        rows.append(row.changed(**stack) if row.kind in ("gate_proj", "down_proj") else row)
    found, given = replace(made, rows=tuple(rows)), {"budget": "0.5p", "ranks": (2, 4)}
    chosen, drawn = (plan(found, **given, score="tail", baseline=name) for name in (None, "random"))
    assert chosen.totals == drawn.totals
    stacks = [item for item in drawn.modules if item.form == "experts"]
    in_full = {item.layer for item in stacks if item.mode == "full"}
    others = {item.layer for item in stacks if item.mode != "full"}
    assert in_full
    assert others
    assert not in_full & others
