"""What LoRA of a rank and a plan follow of the gradient, against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reports
from report_content import content

from hlscore.artifacts.plan import Plan
from hlscore.pages.sentences import key_figures
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


def test_it_is_the_first_tile_of_a_report() -> None:
    page = content(20, rank=4)
    assert key_figures(page)[0] == ("70.0 %", "of this gradient captured by LoRA 4")


def test_an_export_that_changes_the_plan_says_nothing_of_it() -> None:
    plan = planned(TWO, budget="1", rank=4, locks=("*q_proj=full", "*k_proj=lora"))
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
    low = planned(flat, budget="1", ranks=(2, 4), rank=4, locks=("*=rank:4", "*q_proj=rank:2"))
    notes = [note for note in low.notes if "largest rank of --ranks" in note]
    assert len(notes) == 0  # every module is locked: nothing was chosen
    free = planned(flat, budget="3k", ranks=(2, 4), rank=4)
    ranks = [item.rank for item in free.lora_modules]
    many = 2 * ranks.count(4) > len(ranks)
    notes = [note for note in free.notes if "largest rank of --ranks (4)" in note]
    assert bool(notes) == many
    assert many
    assert f"{ranks.count(4)} of rank 4" in notes[0]
    assert summary(free)["ranks"].startswith("adapters: ")


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


def test_updates_of_trials_are_called_so() -> None:
    run = replace(TWO.run, settings={**TWO.run.settings, "capture": {"movement": "trial"}})
    plan = planned(replace(TWO, run=run), budget="1", rank=4)
    assert summary(plan)["reach"].startswith("LoRA 4 captures 84.0 % of this update")
