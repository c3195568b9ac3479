"""The report as one HTML file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from hlscore.pages import facts, sentences
from hlscore.pages.board import Board
from hlscore.pages.charts import Chart, shown_parameter, whole
from hlscore.pages.content import Content
from hlscore.pages.figures import bytes_by_use
from hlscore.pages.palette import colours, repainting
from hlscore.pages.table import COLUMNS, skipped_cells, table_cells
from hlscore.views.wording import memory, short

_LONG_TABLE = 500  # the style sheet shows as many rows at first
_WITH_OUTLINE = ("heat", "bars")
_AUTOSIZE = {"type": "fit-x", "contains": "padding"}


def html_text(board: Board, bundle: str) -> str:
    """Write the page.

    Args:
        bundle: JavaScript that draws the charts, safe inside a `<script>`.

    Returns:
        The text of the file. Every name in it is escaped; its policy lets two scripts run, by
        their hashes, and nothing be loaded.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("hlscore.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["name"] = _breakable
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "sort_keys": False}
    script = _source("report.js")
    style = "\n".join((colours(), _source("report.css"), repainting()))
    return environment.get_template("report.html.jinja").render(
        style=Markup(style),  # noqa: S704 - files of this package
        bundle=Markup(bundle),  # noqa: S704
        script=Markup(script),  # noqa: S704
        hashes=" ".join(f"'{_hash(text)}'" for text in (bundle, script)),
        data=_data(board),
        **_words(board),
    )


def _breakable(name: str) -> str:
    """A full name that a narrow column breaks after its dots, not inside a word."""
    from markupsafe import Markup, escape

    return escape(name).replace(".", Markup(".<wbr>"))


def _source(name: str) -> str:
    return (files("hlscore.pages") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _words(board: Board) -> dict[str, Any]:
    content = board.content
    first = content.lines[0]
    priced = board.ways
    return {
        "content": content,
        "board": board,
        "heading": sentences.heading(content),
        "headline": sentences.headline(content),
        "certainty": sentences.certainty(content),
        "origin": sentences.origin(content),
        "unproven": sentences.unproven(content),
        "figures": facts.key_figures(content, priced[0].use.total_bytes),
        "run_facts": facts.what_was_run(content),
        "provenance": facts.provenance(content),
        "settings": facts.settings_text(content),
        "captions": _captions(board),
        "first": first,
        "memory_table": _memory_table(board),
        "notes": sentences.notes(content),
        "columns": COLUMNS,
        "cut": len(content.lines) > _LONG_TABLE,
        "rows": [table_cells(line) for line in content.lines],
        "skipped_rows": [skipped_cells(row) for row in content.skipped],
        "score": content.score.name,
    }


def _captions(board: Board) -> dict[str, str]:
    content = board.content
    return {
        "heat": sentences.heat_caption(content),
        "bars": sentences.bars_caption(content),
        "tail": sentences.tail_caption(content),
        "stability": sentences.stability_caption(content),
        "reach": sentences.reach_caption(*board.reached) if board.reached else "",
        "memory": sentences.memory_caption(content, board.ways),
        "lora": sentences.equal_lora(content),
    }


def _memory_table(board: Board) -> dict[str, Any]:
    uses = [bytes_by_use(way.use) for way in board.ways]
    return {
        "ways": [way.name for way in board.ways],
        "rows": [(name, [memory(use[name]) for use in uses]) for name in uses[0]],
        "totals": [memory(way.use.total_bytes) for way in board.ways],
        "trained": [short(way.trained_params) for way in board.ways],
    }


def _data(board: Board) -> dict[str, Any]:
    """What the script of the page works with: charts, their columns, and all curves."""
    return {
        "charts": [_chart(chart) for chart in board.charts],
        "curves": _curves(board.content),
        "facts": {"score": board.content.score.name},
    }


def _chart(chart: Chart) -> dict[str, Any]:
    outlined = {"params": shown_parameter()} if chart.name in _WITH_OUTLINE else {}
    spec = whole(chart.view("container"), autosize=_AUTOSIZE, **outlined)
    return {"name": chart.name, "spec": spec, "columns": chart.columns}


def _curves(content: Content) -> dict[str, Any]:
    lines = content.lines
    return {
        "ranks": list(lines[0].row.curve_ranks),
        "tail": [[_rounded(value) for value in line.row.tail_curve] for line in lines],
        "hls": [[_rounded(value) for value in line.row.hls_curve] for line in lines],
    }


def _rounded(value: float) -> float | int:
    """Three digits, as everywhere on the page; a page of many modules stays small."""
    found = float(f"{value:.3g}")
    return 0 if found == 0 else found
