"""What LoRA of a rank and a plan follow of the gradient, against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reports

from hlscore.artifacts.plan import Plan
from hlscore.planning.make_plan import make_plan
from hlscore.planning.revision import Change, revise
from hlscore.records import ScoreReport
from hlscore.settings import PlanSettings
from hlscore.views.summary import summary
from hlscore.wording import near_whole


def report(*curves: tuple[float, ...]) -> ScoreReport:
    """A report whose modules leave so much of their gradients at ranks 0, 2, 4, 8 and 16."""
    found = reports.report(len(curves))
    rows = tuple(
        row.changed(grad_energy=curve[0], tail_curve=curve, hls_curve=curve)
        for row, curve in zip(found.candidates, curves, strict=True)
    )
    return replace(found, rows=rows)


def planned(found: ScoreReport, **settings: object) -> Plan:
    return make_plan(found, PlanSettings(**settings))  # type: ignore[arg-type]


TWO = report((60.0, 30.0, 6.0, 1.0, 0.5), (40.0, 20.0, 10.0, 2.0, 0.1))


def test_shares_are_sums_over_all_candidates() -> None:
    plan = planned(TWO, budget="1", rank=4, locks=("*q_proj=full", "*k_proj=lora"))
    assert plan.coverage is not None
    assert plan.coverage.of == "gradient"
    assert plan.coverage.lora == pytest.approx(1 - (6 + 10) / 100)
    assert plan.coverage.plan == pytest.approx(1 - (0 + 10) / 100)
    frozen = planned(TWO, budget="1", rank=4, locks=("*q_proj=rank:8", "*k_proj=frozen"))
    assert frozen.coverage is not None
    assert frozen.coverage.plan == pytest.approx(1 - (1 + 40) / 100)


def test_it_is_the_first_line_of_a_plan() -> None:
    plan = planned(TWO, budget="1", rank=4, locks=("*q_proj=full", "*k_proj=lora"))
    first = summary(plan)["reach"]
    assert first == "LoRA 4 captures 84.0 % of this gradient, the plan 90.0 %"

    run = replace(TWO.run, settings={**TWO.run.settings, "capture": {"movement": "trial"}})
    of_trials = planned(replace(TWO, run=run), budget="1", rank=4)
    assert summary(of_trials)["reach"].startswith("LoRA 4 captures 84.0 % of this update")
    # An export that changes the plan says nothing of it.
    changed = revise(plan, [Change(module=plan.full[0].module, mode="frozen")])
    assert changed.coverage is not None
    assert changed.coverage.plan is None
    assert summary(changed)["reach"] == "LoRA 4 captures 84.0 % of this gradient"


def test_nothing_is_known_without_probes() -> None:
    bare = report((0.0,) * 5, (0.0,) * 5)
    assert planned(bare, budget="1", score="random").coverage is None
    rows = tuple(row.changed(grad_energy=None, tail_curve=()) for row in TWO.rows)
    assert planned(replace(TWO, rows=rows), budget="1", score="snr").coverage is None


@pytest.mark.parametrize(("left", "said"), [(1e-3, ""), (1e-4, "0.01 %"), (0.0, "nothing")])
def test_a_rank_that_leaves_nothing_over_is_named(left: float, said: str) -> None:
    found = report((1.0, 0.5, left, 0.0, 0.0), (1.0, 0.5, left, 0.0, 0.0))
    notes = [note for note in planned(found, budget="1", rank=4).notes if "next to nothing" in note]
    assert [note.split(" of this gradient")[0] for note in notes] == (
        [f"LoRA of rank 4 leaves {said}"] if said else []
    )


def test_ranks_that_end_too_low_are_said() -> None:
    flat = report(*[(10.0, 9.0, 8.0, 6.0, 2.0)] * 6)
    locked = planned(flat, budget="1", ranks=(2, 4), rank=4, locks=("*=rank:4", "*q_proj=rank:2"))
    assert not any("largest rank of --ranks" in note for note in locked.notes)
    free = planned(flat, budget="3k", ranks=(2, 4), rank=4)
    highest = sum(item.rank == 4 for item in free.lora_modules)
    assert 2 * highest > len(free.lora_modules)
    (note,) = (note for note in free.notes if "largest rank of --ranks (4)" in note)
    assert f"{highest} of rank 4" in note


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.5, "50.0 %"),
        (0.9927, "99.27 %"),
        (0.923, "92.3 %"),
        (0.99996, "99.9960 %"),
        (1.0, "100 %"),
    ],
)
def test_shares_near_one_keep_two_digits_of_what_is_missing(share: float, said: str) -> None:
    assert near_whole(share) == said
