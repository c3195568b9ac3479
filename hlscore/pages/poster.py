"""The charts of a report as one image."""

from __future__ import annotations

import textwrap

from hlscore.pages import sentences
from hlscore.pages.board import Board
from hlscore.pages.charts import Chart, Spec, shown_parameter, whole

_WIDTH = 900
_HALF = 390
_LETTERS = 150
_UNPROVEN = (
    "No score is proven. The baseline to beat is a plain LoRA with as many trained parameters."
)
_APART = {"scale": dict.fromkeys(("color", "fill", "shape", "strokeDash"), "independent")}


def poster(board: Board) -> Spec:
    """Put all charts into one specification, under the headline."""
    content = board.content
    said = " ".join((sentences.headline(content), sentences.certainty(content)))
    rows: list[Spec] = [
        _view(chart, _WIDTH, subtitle)
        for chart, subtitle in (
            (board.heat, "a diamond marks a module trained in full"),
            (board.bars, "bars with 95 % intervals"),
        )
        if chart is not None
    ]
    pairs = [
        (board.tail, "what LoRA of each rank leaves of the gradient"),
        (board.stability, "an upper bound: new probes agree less"),
        *((chart, "picking the best of noisy scores flatters") for chart in board.reach),
    ]
    views = [_view(chart, _HALF, subtitle) for chart, subtitle in pairs if chart is not None]
    rows += [
        {"hconcat": views[place : place + 2], "spacing": 60, "resolve": _APART}
        for place in range(0, len(views), 2)
    ]
    rows.append(_view(board.memory, _WIDTH - 160, "estimate, by use"))
    title = {
        "text": sentences.heading(content),
        "subtitle": [*textwrap.wrap(said, _LETTERS), _UNPROVEN],
        "fontSize": 22,
        "subtitleFontSize": 13,
        "subtitlePadding": 8,
        "offset": 24,
        "frame": "bounds",
    }
    return whole(
        {"vconcat": rows},
        title=title,
        params=shown_parameter(),
        datasets={chart.name: chart.rows() for chart in board.charts},
        padding=28,
        spacing=36,
        resolve=_APART,
    )


def _view(chart: Chart, width: int, subtitle: str) -> Spec:
    title = {"text": chart.title, "subtitle": subtitle, "anchor": "start", "limit": width}
    return {**chart.view(width), "title": title}
