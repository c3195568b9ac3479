"""The report as one HTML file that loads nothing, and as Markdown without charts."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from markupsafe import Markup, escape

from hlscore.pages import sentences
from hlscore.pages.charts import Chart, shown_parameter, whole
from hlscore.pages.content import Content, Line
from hlscore.pages.escaping import name, prose
from hlscore.pages.formats import template
from hlscore.pages.module_charts import TOP
from hlscore.pages.palette import colours, repainting
from hlscore.pages.plan_charts import charts_of
from hlscore.records import ModuleRow
from hlscore.views.summary import chosen_in, shape, training
from hlscore.wording import measure, memory, percent, short

_LONG_TABLE = 500  # the style sheet shows as many rows at first
_WITH_OUTLINE = ("heat", "bars")
_AUTOSIZE = {"type": "fit-x", "contains": "padding"}
_MOST_SKIPPED = 20

COLUMNS = {
    "#": "number",
    "module": "text",
    "score": "number",
    "± se": "number",
    "95 % interval": "number",
    "chosen in": "number",
    "out x in": "number",
    "parameters": "number",
    "trained as": "text",
    "trained parameters": "number",
    "remark": "text",
}
"""How the cells of each column are sorted."""


def html_text(content: Content, chart_script: str) -> str:
    """The text of the page.

    Every name in it is escaped; its policy lets two scripts run, by their hashes, and nothing be
    loaded. `chart_script` draws the charts and must be safe inside a `<script>`.
    """
    source = files("hlscore.pages") / "templates"
    script = (source / "report.js").read_text(encoding="utf-8")
    style = (source / "report.css").read_text(encoding="utf-8")
    charts = charts_of(content)
    page = template("report.html.jinja", name=breakable, memory=memory, short=short)
    return page.render(
        style=Markup("\n".join((colours(), style, repainting()))),  # noqa: S704 - own files
        chart_script=Markup(chart_script),  # noqa: S704
        script=Markup(script),  # noqa: S704
        hashes=" ".join(f"'{_hash(text)}'" for text in (chart_script, script)),
        data={
            "charts": [chart_data(chart) for chart in charts.values()],
            "curves": _curves(content),
        },
        content=content,
        charts=charts,
        text=sentences,
        captions=sentences.captions(content),
        columns=COLUMNS,
        is_long=len(content.lines) > _LONG_TABLE,
        rows=[table_cells(line) for line in content.lines],
        skipped_rows=[skipped_cells(row) for row in content.skipped],
    )


def breakable(name: str) -> str:
    """A full name that a narrow column breaks after its dots, not inside a word."""
    return escape(name).replace(".", Markup(".<wbr>"))


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def chart_data(chart: Chart) -> dict[str, Any]:
    """A chart as the script of the page draws it: name, specification and columns."""
    outlined = {"params": shown_parameter()} if chart.name in _WITH_OUTLINE else {}
    spec = whole(chart.view("container"), autosize=_AUTOSIZE, **outlined)
    return {"name": chart.name, "spec": spec, "columns": chart.columns}


def _curves(content: Content) -> dict[str, Any]:
    """Tail curves of all modules, rounded as everywhere on the page, which stays small so."""
    rows = [line.row for line in content.lines]
    return {
        "ranks": list(rows[0].curve_ranks),
        "tail": [[_rounded(value) for value in row.tail_curve] for row in rows],
        "hls": [[_rounded(value) for value in row.hls_curve] for row in rows],
    }


def _rounded(value: float) -> float | int:
    found = float(f"{value:.3g}")
    return 0 if found == 0 else found


def markdown_text(content: Content) -> str:
    """Write the report as GitHub's Markdown."""
    page = template(
        "report.md.jinja", prose=prose, name=name, memory=memory, percent=percent, short=short
    )
    return page.render(
        content=content,
        text=sentences,
        columns=COLUMNS,
        rows=[table_cells(line) for line in content.lines[:TOP]],
        hidden=len(content.lines) - TOP,
        skipped=content.skipped[:_MOST_SKIPPED],
        skipped_hidden=len(content.skipped) - _MOST_SKIPPED,
        shares=(0.05, 0.1, 0.2, 0.3, 0.5),
    )


def table_cells(line: Line) -> list[str]:
    """Texts of a candidate, one per column."""
    row = line.row
    return [
        str(row.rank),
        row.module,
        measure(line.score),
        measure(line.stderr),
        "-" if line.low is None else f"{measure(line.low)} to {measure(line.high)}",
        chosen_in(line.chosen),
        shape(row),
        f"{row.n_params:,}",
        training(line.mode, line.rank),
        f"{line.trained_params:,}",
        "; ".join(text for text in ("locked" if line.locked else "", line.remark) if text),
    ]


def skipped_cells(row: ModuleRow) -> list[str]:
    """Texts of a weight that is no candidate, one per column."""
    size = shape(row)
    return ["-", row.module, *"----", size, f"{row.n_params:,}", "left out", "0", row.reason]
