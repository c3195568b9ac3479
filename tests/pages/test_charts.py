"""Charts are valid Vega-Lite that holds what the report holds, as page and as image."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import altair as alt
import pytest
import vl_convert
from report_content import HOSTILE, content, hostile_report, joined, with_rows

from hlscore.pages.charts import charts_of, heat_chart, poster
from hlscore.pages.page import chart_data, html_text
from hlscore.pages.palette import COLOURS
from hlscore.pages.vega import VEGA_LITE_VERSION, paint, signed, whole


def literals(value: Any) -> set[str]:
    """Every colour that a specification names."""
    if isinstance(value, dict):
        return set().union(*map(literals, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(literals, value))
    return {value} if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]+", value) else set()


@pytest.mark.parametrize(
    "options",
    [{"count": 450, "budget": "0.1"}, {"count": 21, "resamples": 0}, {"count": 1, "budget": "1"}],
    ids=["many", "no resamples", "one"],
)
def test_poster_and_page_draw_the_same_valid_vega_lite(options: dict[str, Any]) -> None:
    case = content(**options)
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
    # Every colour has one for dark pages.
    used = literals([whole(chart.view(400)) for chart in charts.values()])
    assert len(used) > 8
    assert used <= {light for light, _ in COLOURS.values()}


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_apart(theme: int) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(first: str, second: str) -> float:
        low, high = sorted(luminance(COLOURS[name][theme]) for name in (first, second))
        return (high + 0.05) / (low + 0.05)

    assert len({pair[theme] for pair in COLOURS.values()}) == len(COLOURS)
    for text in ("ink", "muted", "full", "mark"):  # WCAG AA for text
        assert contrast(text, "paper") >= 4.5, text
    for surface in ("ramp-0", "band"):
        assert contrast("ink", surface) >= 4.5
        assert contrast("muted", surface) >= 4.5
    assert contrast("rest", "paper") >= 3  # and for marks
    ramp = [luminance(COLOURS[f"ramp-{step}"][theme]) for step in range(6)]
    assert ramp == sorted(ramp, reverse=theme == 0)


def test_ranked_bars_carry_the_scores_in_order() -> None:
    found = content(60, budget="0.2")
    bars = charts_of(found)["bars"]
    assert len(bars.columns["id"]) == 40
    assert bars.columns["score"] == [line.score for line in found.lines[:40]]
    assert bars.columns["low"] == [line.low for line in found.lines[:40]]
    assert bars.columns["train"].count("full") == 12
    # The line is under the last one in full.
    assert f"'datum': {bars.columns['label'][11]!r}" in str(bars.spec)
    scattered = charts_of(content(60, budget="0.2", locks=("*.5.*=full",)))["bars"]
    assert "bandPosition" not in str(scattered.spec)


def test_the_chart_of_stability_holds_the_shares_of_the_plan() -> None:
    found = content(30, budget="0.2")
    chart = charts_of(found)["stability"]
    shares = {item.position: item.selection_probability for item in found.plan.modules}
    drawn = dict(zip(chart.columns["place"], chart.columns["chosen"], strict=True))
    assert drawn == shares


def test_every_module_is_in_the_heat_map_or_named_beside_it() -> None:
    found = content(35)
    chart = charts_of(found)["heat"]
    names = ("layer", "kind", "full", "modules")
    columns = zip(*(chart.columns[name] for name in names), strict=True)
    cells = {(layer, kind): (full, modules) for layer, kind, full, modules in columns}
    assert sum(modules for _, modules in cells.values()) == 35
    for line in found.lines:
        assert cells[line.row.layer, signed(line.row.kind)][0] == int(line.full)
    some = heat_chart(with_rows(35, first=30, layer=None))
    assert some is not None
    assert "5 modules outside the layers" in some.caption
    nowhere = with_rows(35, layer=None)
    assert heat_chart(nowhere) is None
    assert "there is no map" in html_text(nowhere, "0")
    assert "there is no map" not in html_text(found, "0")


def test_single_experts_share_a_row() -> None:
    experts = heat_chart(with_rows(100, block="mlp.experts.N", kind="up_proj", layer=0))
    assert experts is not None
    assert experts.columns["kind"] == [signed("up_proj")]
    assert experts.columns["modules"] == [100]


def test_svg_keeps_hostile_names_as_text() -> None:
    text = paint(poster(joined(hostile_report())), ".svg").decode()
    root = ET.fromstring(text)  # noqa: S314 - made a line above
    tags = {item.tag.rpartition("}")[2] for item in root.iter()}
    assert tags <= {"svg", "g", "path", "text", "defs", "clipPath", "rect", "line", "tspan"}
    assert HOSTILE[1] in " ".join(item.text or "" for item in root.iter())
    assert not re.search(r"(?:href|src)=", re.sub(r"&[a-z]+;.*?(?=<)", "", text))
