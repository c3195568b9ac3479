"""What all charts share: one Vega-Lite specification serves pages and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hlscore.pages.palette import GRID, HALO, INK, MUTED, PAPER, RULE

VEGA_LITE_VERSION = "6.1"
SCHEMA = f"https://vega.github.io/schema/vega-lite/v{VEGA_LITE_VERSION}.0.json"

Spec = dict[str, Any]

FULL_SIGN: Spec = {
    "type": "point",
    "shape": "diamond",
    "filled": True,
    "fill": HALO.light,
    "stroke": INK.light,
    "strokeWidth": 1.2,
    "opacity": 1,
    "size": 75,
}
"""The mark of a module trained in full, the same in every chart."""

TOLD: Spec = {"tooltip": {"field": "id", "type": "quantitative"}}
"""Marks of a module: the page looks up what to tell of it."""

_SIGN = ":"
UNSIGNED: Spec = {
    "labelExpr": "slice(datum.label, 1)",
    "ticks": False,
    "domain": False,
    "labelPadding": 8,
}
"""An axis whose labels stand behind a sign."""


def signed(name: str) -> str:
    """A name as a key of data; without the sign, Vega would trip over one like `constructor`."""
    return f"{_SIGN}{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart without size or data, and its data.

    Attributes:
        name: Name of the chart and of its data set.
        title: What it shows, in a few words.
        description: What it shows, for those who do not see it.
        spec: Vega-Lite specification of one view.
        columns: Its data, a list per field; all are of one length.
    """

    name: str
    title: str
    description: str
    spec: Spec
    columns: Mapping[str, Sequence[Any]]

    def rows(self) -> list[dict[str, Any]]:
        """The data as Vega-Lite takes it, a dictionary per row."""
        names = list(self.columns)
        return [
            dict(zip(names, values, strict=True))
            for values in zip(*self.columns.values(), strict=True)
        ]

    def view(self, width: int | str) -> Spec:
        """The chart as a view that names its data set."""
        return {
            "description": self.description,
            "data": {"name": self.name},
            "width": width,
            **self.spec,
        }


def whole(view: Spec, **rest: Any) -> Spec:
    """Turn a view into a specification that stands alone."""
    return {"$schema": SCHEMA, "config": config(), **rest, **view}


def shown_parameter(place: int = 0) -> list[Spec]:
    """The parameter that says which line's tail curve is shown."""
    return [{"name": "shown", "value": place}]


def number_axis(largest: float) -> Spec:
    """An axis of scores, which may be very small."""
    plain = largest == 0 or 0.01 <= largest < 1e5
    return {
        "format": ".4~g" if plain else ".3~e",
        "labelExpr": "datum.value === 0 ? '0' : datum.label",
        "tickCount": 5,
    }


def config() -> Spec:
    """Look of all charts; every colour is one of the palette."""
    text = {"labelColor": MUTED.light, "titleColor": INK.light, "labelFontSize": 12,
            "titleFontSize": 12, "titleFontWeight": "normal"}  # fmt: skip
    return {
        "background": PAPER.light,
        "font": "sans-serif",
        "view": {"stroke": None},
        "axis": {
            **text,
            "domainColor": RULE.light,
            "tickColor": RULE.light,
            "gridColor": GRID.light,
            "labelLimit": 240,
            "titlePadding": 8,
        },
        "legend": {
            **text,
            "orient": "top",
            "direction": "horizontal",
            "titleOrient": "left",
            "titleLimit": 240,
            "labelLimit": 240,
            "symbolSize": 120,
            "columnPadding": 14,
            "offset": 8,
        },
        "title": {
            "color": INK.light,
            "subtitleColor": MUTED.light,
            "anchor": "start",
            "fontSize": 15,
            "subtitleFontSize": 12,
            "subtitlePadding": 6,
            "frame": "group",
        },
    }
