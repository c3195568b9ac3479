"""The charts of a report as one image."""

from __future__ import annotations

import textwrap

from hlscore.pages import sentences
from hlscore.pages.charts import charts_of
from hlscore.pages.content import Content
from hlscore.pages.vega import SHOWN, Spec, whole

_WIDTH = 900
_HALF = 390
_LETTERS = 150
_UNPROVEN = "No score is proven. The baseline is a plain LoRA with as many trained parameters."
_WIDTHS = {"heat": _WIDTH, "bars": _WIDTH, "memory": _WIDTH - 160}
_APART = {"scale": dict.fromkeys(("color", "fill", "shape", "strokeDash"), "independent")}


def poster(content: Content) -> Spec:
    """All charts in one specification, under the headline; those of half the width in pairs."""
    charts = charts_of(content)
    rows: list[Spec] = []
    halves: list[Spec] = []
    for name, chart in charts.items():
        width = _WIDTHS.get(name, _HALF)
        title = {"text": chart.title, "subtitle": chart.subtitle, "anchor": "start",
                 "limit": width}  # fmt: skip
        (rows if name in _WIDTHS else halves).append({**chart.view(width), "title": title})
    pairs: list[Spec] = [
        {"hconcat": halves[place : place + 2], "spacing": 60, "resolve": _APART}
        for place in range(0, len(halves), 2)
    ]
    text = f"{sentences.headline(content)} {sentences.certainty(content)}"
    title = {
        "text": sentences.heading(content),
        "subtitle": [*textwrap.wrap(text, _LETTERS), _UNPROVEN],
        "fontSize": 22,
        "subtitleFontSize": 13,
        "subtitlePadding": 8,
        "offset": 24,
        "frame": "bounds",
    }
    return whole(
        {"vconcat": [*rows[:-1], *pairs, rows[-1]]},
        title=title,
        params=SHOWN,
        datasets={name: chart.rows() for name, chart in charts.items()},
        padding=28,
        spacing=36,
        resolve=_APART,
    )
