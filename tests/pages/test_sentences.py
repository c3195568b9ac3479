"""What the report says of its own certainty: nothing is called unstable that was never chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_content import content, planned, silent_content
from reports import report

from hlscore.pages import sentences
from hlscore.pages.charts import charts_of
from hlscore.pages.content import Content, join


def noisy_content(modules: int) -> Content:
    """Scores of which no interval lies above zero."""
    found = report(modules)
    rows = tuple(
        replace(row, hls_replicates=tuple((-1.0) ** at for at in range(20)))
        if row.is_candidate
        else row
        for row in found.rows
    )
    found = replace(found, rows=rows)
    return join(found, planned(found), planned_here=False)


def test_scores_of_zero_are_called_nothing_found() -> None:
    found = silent_content(30)
    assert "No score is above zero" in sentences.certainty(found)
    assert "does not prove that there is none" in sentences.certainty(found)
    assert "all cells look alike" in sentences.heat_caption(found)
    assert "undefined" in sentences.stability_caption(found)
    assert "stability" not in charts_of(found)


def test_an_order_of_noise_is_called_noise_and_chance_is_given() -> None:
    said = sentences.certainty(noisy_content(200))
    assert "mostly noise: only 0 of 200 modules" in said
    assert "(about 5 would by chance)" in said
    assert "(about 0.5 would by chance)" in sentences.certainty(noisy_content(20))
    assert "noise" not in sentences.certainty(content(20))


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        ("random", "No score selected these modules"),
        ("all-full", "No score selected these modules"),
        ("all-lora", "No module is trained in full"),
    ],
)
def test_of_baselines_no_stability_is_told(baseline: str, said: str) -> None:
    found = content(42, baseline=baseline)
    for text in (sentences.certainty(found), sentences.stability_caption(found)):
        assert said in text
        assert "resamples" not in text


def test_where_everything_is_chosen_nothing_was_to_choose() -> None:
    found = content(5, budget="1")
    assert "nothing to choose" in sentences.certainty(found)
    assert "stability" not in charts_of(found)
    assert "budget ends" not in str(charts_of(found)["bars"].spec)
