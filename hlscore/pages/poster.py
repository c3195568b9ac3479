"""The charts of a report as one image."""

from __future__ import annotations

import textwrap

from hlscore.pages import sentences
from hlscore.pages.charts import Spec, shown_parameter, whole
from hlscore.pages.content import Content
from hlscore.pages.plan_charts import charts_of

_WIDTH = 900
_HALF = 390
_LETTERS = 150
_UNPROVEN = "No score is proven. The baseline is a plain LoRA with as many trained parameters."
_BIASED = "selecting the best of noisy scores biases it upwards"
_SUBTITLES = {
    "heat": "a diamond marks a module trained in full",
    "bars": "bars with 95 % intervals",
    "tail": "what LoRA of each rank misses of the gradient",
    "stability": "an upper bound: new probes agree less",
    "cumulative-modules": _BIASED,
    "cumulative-parameters": _BIASED,
    "memory": "estimate, by use",
}
_WIDTHS = {"heat": _WIDTH, "bars": _WIDTH, "memory": _WIDTH - 160}
_APART = {"scale": dict.fromkeys(("color", "fill", "shape", "strokeDash"), "independent")}


def poster(content: Content) -> Spec:
    """All charts in one specification, under the headline."""
    charts = charts_of(content)
    views = {}
    for name, chart in charts.items():
        width = _WIDTHS.get(name, _HALF)
        title = {"text": chart.title, "subtitle": _SUBTITLES[name], "anchor": "start",
                 "limit": width}  # fmt: skip
        views[name] = {**chart.view(width), "title": title}
    halves = [view for name, view in views.items() if name not in _WIDTHS]
    rows: list[Spec] = [views[name] for name in ("heat", "bars") if name in views]
    rows += [
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
        {"vconcat": [*rows, views["memory"]]},
        title=title,
        params=shown_parameter(),
        datasets={name: chart.rows() for name, chart in charts.items()},
        padding=28,
        spacing=36,
        resolve=_APART,
    )
