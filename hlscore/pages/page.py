"""The report as a file: one HTML page that loads nothing, an image, or Markdown without charts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from hlscore.errors import HlscoreError, UsageError
from hlscore.pages import sentences
from hlscore.pages.charts import TOP, charts_of, poster
from hlscore.pages.content import USES, Content, Line
from hlscore.pages.escaping import name, prose
from hlscore.pages.palette import style_rules
from hlscore.pages.vega import SHOWN, Chart, chart_script, paint, whole
from hlscore.views.summary import chosen_in, training
from hlscore.wording import measure, memory, percent, short

_FORMATS = (".html", ".png", ".svg", ".md")
_LONG_TABLE = 500  # the style sheet shows as many rows at first
_MOST_SKIPPED = 20

_COLUMNS: dict[str, tuple[str, Callable[[Line], str]]] = {
    "#": ("number", lambda line: str(line.row.rank)),
    "module": ("text", lambda line: line.row.module),
    "score": ("number", lambda line: measure(line.score)),
    "± se": ("number", lambda line: measure(line.stderr)),
    "95 % interval": (
        "number",
        lambda line: "-" if line.low is None else f"{measure(line.low)} to {measure(line.high)}",
    ),
    "chosen in": ("number", lambda line: chosen_in(line.chosen)),
    "out x in": ("number", lambda line: line.row.size),
    "parameters": ("number", lambda line: f"{line.row.n_params:,}"),
    "trained as": ("text", lambda line: training(line.mode, line.rank)),
    "trained parameters": ("number", lambda line: f"{line.trained_params:,}"),
    "remark": (
        "text",
        lambda line: "; ".join(filter(None, ("locked" if line.locked else "", line.remark))),
    ),
}
"""Columns of the table: how their cells are sorted, and the text of a candidate."""


def check_format(target: Path) -> str:
    """The suffix of a file in lower case; refuses one that cannot be written."""
    suffix = target.suffix.lower()
    if suffix not in _FORMATS:
        raise UsageError(
            f"'{target}' has an unknown suffix.",
            hint=f"Use {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}.",
        )
    if suffix != ".md" and find_spec("vl_convert") is None:
        raise HlscoreError(
            f"A report as {suffix} needs vl-convert-python, which draws the charts.",
            hint="Run pip install 'hlscore[report]', or write .md, which needs no extra.",
        )
    return suffix


def render(content: Content, suffix: str) -> bytes:
    """The bytes of a report file; equal inputs give equal bytes."""
    if suffix == ".md":
        return markdown_text(content).encode()
    if suffix == ".html":
        return html_text(content, chart_script()).encode()
    return paint(poster(content), suffix)


def html_text(content: Content, chart_script: str) -> str:
    """The text of the page.

    Every name in it is escaped; its policy lets two scripts run, by their hashes, and nothing be
    loaded. `chart_script` draws the charts and must be safe inside a `<script>`.
    """
    source = files("hlscore.pages") / "templates"
    script = (source / "report.js").read_text(encoding="utf-8")
    style = (source / "report.css").read_text(encoding="utf-8")
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (chart_script, script)
    ]
    charts, rows = charts_of(content), [line.row for line in content.lines]
    page = _template("report.html.jinja", name=breakable, memory=memory, short=short)
    return page.render(
        style=Markup(f"{style_rules()}\n{style}"),  # noqa: S704 - own files
        chart_script=Markup(chart_script),  # noqa: S704
        script=Markup(script),  # noqa: S704
        hashes=" ".join(f"'sha256-{digest}'" for digest in digests),
        data={
            "charts": [chart_data(chart) for chart in charts.values()],
            "curves": {
                "ranks": list(rows[0].curve_ranks),
                "tail": [[_rounded(value) for value in row.tail_curve] for row in rows],
                "hls": [[_rounded(value) for value in row.hls_curve] for row in rows],
            },
        },
        content=content,
        charts=charts,
        text=sentences,
        uses=USES,
        columns={title: sort for title, (sort, _) in _COLUMNS.items()},
        is_long=len(rows) > _LONG_TABLE,
        rows=[[text(line) for _, text in _COLUMNS.values()] for line in content.lines],
        skipped_rows=[
            ("-", row.module, *"----", row.size, f"{row.n_params:,}", "left out", "0", row.reason)
            for row in content.skipped
        ],
    )


def _template(file: str, /, **filters: Callable[[Any], str]) -> Template:
    """A template of this package: HTML escapes by itself, Markdown by the filters that it calls."""
    environment = Environment(
        loader=PackageLoader("hlscore.pages"),
        autoescape=file.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "sort_keys": False}
    return environment.get_template(file)


def breakable(name: str) -> str:
    """A full name that a narrow column breaks after its dots, not inside a word."""
    return escape(name).replace(".", Markup(".<wbr>"))


def chart_data(chart: Chart) -> dict[str, Any]:
    """A chart as the script of the page draws it: name, specification and columns."""
    outlined = {"params": SHOWN} if chart.name in ("heat", "bars") else {}
    autosize = {"type": "fit-x", "contains": "padding"}
    spec = whole(chart.view("container"), autosize=autosize, **outlined)
    return {"name": chart.name, "spec": spec, "columns": chart.columns}


def _rounded(value: float) -> float | int:
    """Three digits, as everywhere on the page, which stays small so."""
    found = float(f"{value:.3g}")
    return 0 if found == 0 else found


def markdown_text(content: Content) -> str:
    """The report as GitHub's Markdown."""
    page = _template(
        "report.md.jinja", prose=prose, name=name, memory=memory, percent=percent, short=short
    )
    return page.render(
        content=content,
        charts=charts_of(content),
        text=sentences,
        uses=USES,
        columns={title: sort for title, (sort, _) in _COLUMNS.items()},
        rows=[[text(line) for _, text in _COLUMNS.values()] for line in content.lines[:TOP]],
        hidden=len(content.lines) - TOP,
        skipped=content.skipped[:_MOST_SKIPPED],
        skipped_hidden=len(content.skipped) - _MOST_SKIPPED,
        shares=(0.05, 0.1, 0.2, 0.3, 0.5),
    )
