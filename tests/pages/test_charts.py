"""Charts are valid Vega-Lite, and images hold what the charts hold."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import altair as alt
import pytest
import vl_convert
from report_content import HOSTILE, content, hostile_report, planned

from hlscore.pages.charts import charts_of, poster
from hlscore.pages.content import Content, join
from hlscore.pages.page import chart_data
from hlscore.pages.palette import COLOURS
from hlscore.pages.vega import VEGA_LITE_VERSION, paint, whole

CASES: dict[str, dict[str, Any]] = {
    "many": {"count": 450, "budget": "0.1"},
    "no resamples": {"count": 21, "resamples": 0},
    "one": {"count": 1, "budget": "1"},
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Content:
    return content(**CASES[request.param])


def test_poster_and_page_draw_the_same_valid_vega_lite(case: Content) -> None:
    spec, charts = poster(case), charts_of(case)
    assert len(charts) >= 4
    alt.VConcatChart.from_dict(spec, validate=True)
    assert vl_convert.vegalite_to_vega(spec, vl_version=VEGA_LITE_VERSION)["marks"]
    views = [view for row in spec["vconcat"] for view in row.get("hconcat", [row])]
    shown = {view["data"]["name"]: view for view in views}
    assert shown.keys() == charts.keys()
    for name, chart in charts.items():
        assert chart.spec.items() <= shown[name].items()
        assert chart.spec.items() <= chart_data(chart)["spec"].items()
        assert spec["datasets"][name] == chart.rows()


def literals(value: Any) -> set[str]:
    """Every colour that a specification names."""
    if isinstance(value, dict):
        return set().union(*map(literals, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(literals, value))
    return {value} if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]+", value) else set()


def test_every_colour_has_one_for_dark_pages(case: Content) -> None:
    used = literals([whole(chart.view(400)) for chart in charts_of(case).values()])
    assert len(used) > 8
    assert used <= {light for light, _ in COLOURS.values()}


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
              for part in parts]  # fmt: skip
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_apart(theme: int) -> None:
    named = {name: pair[theme] for name, pair in COLOURS.items()}
    assert len(set(named.values())) == len(named)
    for text in ("ink", "muted", "full", "mark"):  # WCAG AA for text
        assert contrast(named[text], named["paper"]) >= 4.5, text
    for surface in ("ramp-0", "band"):
        assert contrast(named["ink"], named[surface]) >= 4.5
        assert contrast(named["muted"], named[surface]) >= 4.5
    assert contrast(named["rest"], named["paper"]) >= 3  # and for marks
    ramp = [luminance(named[f"ramp-{step}"]) for step in range(6)]
    assert ramp == sorted(ramp, reverse=theme == 0)


def test_ranked_bars_carry_the_scores_in_order() -> None:
    found = content(60, budget="0.2")
    bars = charts_of(found)["bars"]
    assert len(bars.columns["id"]) == 40
    assert bars.columns["score"] == [line.score for line in found.lines[:40]]
    assert bars.columns["low"] == [line.low for line in found.lines[:40]]
    assert bars.columns["train"].count("full") == 12
    texts = str(bars.spec)
    assert f"'datum': {bars.columns['label'][11]!r}" in texts  # the line under the last one in full
    scattered = charts_of(content(60, budget="0.2", locks=("*.5.*=full",)))["bars"]
    assert "bandPosition" not in str(scattered.spec)


def test_the_chart_of_stability_holds_the_shares_of_the_plan() -> None:
    found = content(30, budget="0.2")
    chart = charts_of(found)["stability"]
    shares = {item.position: item.selection_probability for item in found.plan.modules}
    drawn = dict(zip(chart.columns["place"], chart.columns["chosen"], strict=True))
    assert drawn == shares
    assert len(charts_of(content(900))["stability"].columns["id"]) == 300


def test_svg_keeps_hostile_names_as_text() -> None:
    found = hostile_report()
    text = paint(poster(join(found, planned(found), planned_here=False)), ".svg").decode()
    root = ET.fromstring(text)  # noqa: S314 - made a line above
    tags = {item.tag.rpartition("}")[2] for item in root.iter()}
    assert tags <= {"svg", "g", "path", "text", "defs", "clipPath", "rect", "line", "tspan"}
    words = " ".join(item.text or "" for item in root.iter())
    assert HOSTILE[1] in words
    assert not re.search(r"(?:href|src)=", re.sub(r"&[a-z]+;.*?(?=<)", "", text))
