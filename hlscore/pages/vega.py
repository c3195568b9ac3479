"""Vega-Lite: the words of a specification, what all charts share, and how one is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hlscore.pages.palette import GRID, HALO, INK, MARK, MUTED, PAPER, RULE

Spec = dict[str, Any]

VEGA_LITE_VERSION = "6.1"
SCHEMA = f"https://vega.github.io/schema/vega-lite/v{VEGA_LITE_VERSION}.0.json"

FULL_SIGN: Spec = {"type": "point", "shape": "diamond", "filled": True, "fill": HALO, "stroke": INK,
                   "strokeWidth": 1.2, "opacity": 1, "size": 75}  # fmt: skip
"""The mark of a module trained in full, the same in every chart."""

LIMIT_RULE: Spec = {"type": "rule", "color": MARK, "strokeWidth": 2, "strokeDash": [6, 4]}
"""The line of a budget, of a plan, or of its rank."""

TOOLTIP: Spec = {"tooltip": {"field": "id", "type": "quantitative"}}
"""Marks of a module: the page looks up the text of the tooltip by its place."""

ZERO: Spec = {"datum": 0, "type": "quantitative"}

SHARE_SCALE: Spec = {"scale": {"domain": [0, 1]}, "axis": {"format": ".0%", "tickCount": 5}}

PLAIN_AXIS: Spec = {"ticks": False, "domain": False, "labelPadding": 8}

UNSIGNED: Spec = {"labelExpr": "slice(datum.label, 1)", **PLAIN_AXIS}
"""An axis of labels that `signed` made."""

SHOWN: list[Spec] = [{"name": "shown", "value": 0}]
"""The parameter that holds the place of the line whose tail curve is shown."""

_TEXT: Spec = {"labelColor": MUTED, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12,
               "titleFontWeight": "normal", "labelLimit": 240}  # fmt: skip
_CONFIG: Spec = {
    "background": PAPER,
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {**_TEXT, "domainColor": RULE, "tickColor": RULE, "gridColor": GRID, "titlePadding": 8},
    "legend": {**_TEXT, "orient": "top", "direction": "horizontal", "titleOrient": "left",
               "titleLimit": 240, "symbolSize": 120, "columnPadding": 14, "offset": 8},
    "title": {"color": INK, "subtitleColor": MUTED, "anchor": "start", "fontSize": 15,
              "subtitleFontSize": 12, "subtitlePadding": 6, "frame": "group"},
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart without size or data, and its data."""

    name: str  # also of its data set
    title: str
    subtitle: str  # below the title of an image
    caption: str = ""  # how to read it, below it on a page
    description: str  # what it shows, for those who do not see it
    spec: Spec  # vega-Lite specification of one view
    columns: Mapping[str, Sequence[Any]]  # its data, a list per field; all are of one length

    def rows(self) -> list[dict[str, Any]]:
        """The data as Vega-Lite takes it, a dictionary per row."""
        rows = zip(*self.columns.values(), strict=True)
        return [dict(zip(self.columns, values, strict=True)) for values in rows]

    def view(self, width: int | str) -> Spec:
        """The chart as a view that names its data set."""
        data = {"name": self.name}
        return {"description": self.description, "data": data, "width": width, **self.spec}


def columns(names: str, rows: Iterable[Sequence[Any]]) -> dict[str, list[Any]]:
    """Rows as a list per field; the names of the fields have spaces between them."""
    found = list(rows)
    return {name: [row[place] for row in found] for place, name in enumerate(names.split())}


def signed(name: str) -> str:
    """A name as a key of data; without the sign, Vega would trip over one like `constructor`."""
    return f":{name}"


def number(field: str, **rest: Any) -> Spec:
    """A quantitative encoding of a field."""
    return {"field": field, "type": "quantitative", **rest}


def category(field: str, scale: Mapping[str, Any] | None = None, **rest: Any) -> Spec:
    """A nominal encoding of a field; `scale` gives values their colours, shapes or dashes."""
    if scale is not None:
        rest["scale"] = {"domain": list(scale), "range": list(scale.values())}
    return {"field": field, "type": "nominal", **rest}


def layer(encoding: Spec, *values: Mapping[str, Any], where: str = "", **mark: Any) -> Spec:
    """A layer of marks, of values of its own or those of the chart, `where` a condition holds."""
    found: Spec = {"mark": mark, "encoding": encoding}
    if values:
        found["data"] = {"values": list(values)}
    return found | ({"transform": [{"filter": where}]} if where else {})


def number_axis(largest: float) -> Spec:
    """An axis of scores, which may be very small."""
    plain = largest == 0 or 0.01 <= largest < 1e5
    return {
        "format": ".4~g" if plain else ".3~e",
        "labelExpr": "datum.value === 0 ? '0' : datum.label",
        "tickCount": 5,
    }


def whole(view: Spec, **rest: Any) -> Spec:
    """A view as a specification that stands alone; every colour is one of the palette."""
    return {"$schema": SCHEMA, "config": _CONFIG, **rest, **view}


def paint(spec: Spec, suffix: str) -> bytes:
    """Draw a specification as `.svg`, or as `.png` at two pixels per unit."""
    import vl_convert

    if suffix == ".svg":
        return str(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE_VERSION)).encode()
    image: bytes = vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE_VERSION, scale=2)
    return image


@cache
def chart_script() -> str:
    """Vega, Vega-Lite and Vega-Embed in one JavaScript, safe inside a `<script>`."""
    import vl_convert

    return inline(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE_VERSION))


def inline(script: str) -> str:
    """Escape a script so that no string in it ends the element that holds it."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script, flags=re.IGNORECASE)
