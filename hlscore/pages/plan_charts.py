"""Charts of a plan: how stable the choice is, what a budget reaches, what training takes."""

from __future__ import annotations

from hlscore.pages.charts import FULL_SIGN, TOLD, Chart, Spec
from hlscore.pages.content import Content
from hlscore.pages.figures import USES, Reach, Unit, Way, bytes_by_use
from hlscore.pages.palette import BAND, FULL, HALO, INK, MARK, MUTED, REST, SERIES, SPREAD
from hlscore.planning.allocation import BORDERLINE
from hlscore.views.wording import memory

_MOST_POINTS = 400
_FEW = 12
_RIGHT = 0.75
_BYTES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def stability_chart(content: Content) -> Chart | None:
    """The share of resamples that choose each module, over its place.

    Returns:
        The chart; `None` where the plan holds no such shares, or nothing was to choose.
    """
    known = [(place, line) for place, line in enumerate(content.lines) if line.chosen is not None]
    if not known or len(content.full_lines) in (0, len(content.lines)):
        return None
    shown = known[:: points_per_mark(len(known))]
    share = {"type": "quantitative", "title": "chosen in", "scale": {"domain": [0, 1]},
             "axis": {"format": ".0%", "tickCount": 5}}  # fmt: skip
    place = {"field": "place", "type": "quantitative", "title": f"place by {content.score.name}",
             "scale": {"domain": [0, len(content.lines) + 1], "nice": False},
             "axis": {"grid": False, **_whole_places(len(content.lines))}}  # fmt: skip
    low, high = BORDERLINE
    domain = {"domain": ["trained in full", "not in full"]}
    kind = {"field": "train", "type": "nominal", "title": None}
    band: Spec = {
        "data": {"values": [{"low": low, "high": high}]},
        "mark": {"type": "rect", "color": BAND.light},
        "encoding": {
            "y": {"field": "low", **share},
            "y2": {"field": "high"},
        },
    }
    points: Spec = {
        "mark": {"type": "point", "filled": True, "opacity": 1, "size": 90,
                 "stroke": HALO.light, "strokeWidth": 0.8},
        "encoding": {
            "x": place,
            "y": {"field": "chosen", **share},
            "fill": {**kind, "scale": {**domain, "range": [FULL.light, REST.light]}},
            "shape": {**kind, "scale": {**domain, "range": ["diamond", "circle"]}},
            **TOLD,
        },
    }  # fmt: skip
    layers = [band, points]
    if content.first_places_full:
        layers.insert(1, _rule_after(len(content.full_lines)))
    return Chart(
        name="stability",
        title="How often resamples of the probes choose a module",
        description="A point per module: its place, and the share of resamples in which it is "
        "chosen. A band marks 10 % to 90 %. The table of all modules holds the numbers.",
        spec={"height": 240, "layer": layers},
        columns={
            "id": [at for at, _ in shown],
            "place": [line.row.rank for _, line in shown],
            "chosen": [line.chosen for _, line in shown],
            "train": [domain["domain"][0 if line.full else 1] for _, line in shown],
        },
    )


def _whole_places(modules: int) -> Spec:
    """An axis of few places would get ticks between them."""
    return {"values": list(range(1, modules + 1))} if modules <= _FEW else {}


def points_per_mark(modules: int) -> int:
    """Of how many modules the chart of stability draws one."""
    return max(1, -(-modules // _MOST_POINTS))


def _rule_after(place: int) -> Spec:
    return {
        "data": {"values": [{"place": place + 0.5}]},
        "mark": {"type": "rule", "color": MARK.light, "strokeWidth": 2, "strokeDash": [6, 4]},
        "encoding": {"x": {"field": "place", "type": "quantitative"}},
    }


def reach_chart(found: Reach, unit: Unit) -> Chart:
    """Share of all positive scores that the best modules hold, over their share of the model."""
    share = {"type": "quantitative", "scale": {"domain": [0, 1]},
             "axis": {"format": ".0%", "tickCount": 5}}  # fmt: skip
    x = {"field": "taken", **share, "title": f"share of {unit} in full"}
    y = {"field": "held", **share, "title": "share of positive scores"}
    columns: dict[str, tuple[float, ...]] = {"taken": found.taken, "held": found.held}
    layers: list[Spec] = []
    if found.low:
        columns |= {"low": found.low, "high": found.high}
        layers.append(
            {"mark": {"type": "area", "color": SPREAD.light, "opacity": 1},
             "encoding": {"x": x, "y": {"field": "low", **share, "title": y["title"]},
                          "y2": {"field": "high"}}}
        )  # fmt: skip
    plan = {"taken": found.plan_taken, "held": found.plan_held}
    layers += [
        {"data": {"values": [{"taken": 0, "held": 0}, {"taken": 1, "held": 1}]},
         "mark": {"type": "line", "color": MUTED.light, "strokeDash": [3, 4], "strokeWidth": 1.5},
         "encoding": {"x": x, "y": y}},
        {"data": {"values": [{"taken": 1, "held": 0.8}]},
         "mark": {"type": "text", "color": MUTED.light, "text": "random choice", "align": "right",
                  "baseline": "top", "dx": -4, "dy": 6},
         "encoding": {"x": x, "y": y}},
        {"mark": {"type": "line", "color": FULL.light, "strokeWidth": 2.5},
         "encoding": {"x": x, "y": y}},
        {"data": {"values": [plan]},
         "mark": {"type": "rule", "color": MARK.light, "strokeWidth": 2, "strokeDash": [6, 4]},
         "encoding": {"x": x}},
        {"data": {"values": [plan]}, "mark": {**FULL_SIGN, "size": 110},
         "encoding": {"x": x, "y": y}},
        {"data": {"values": [plan]},
         "mark": {"type": "text", "color": MARK.light, "baseline": "bottom",
                  **_beside(found.plan_taken), "dy": -4, "text": "this plan"},
         "encoding": {"x": x, "y": {"datum": 0, "type": "quantitative"}}},
    ]  # fmt: skip
    return Chart(
        name=f"reach-{unit}",
        title=f"Reach by share of {unit}",
        description=f"A curve over the share of {unit} trained in full, the best first: the share "
        "of the sum of positive scores that they hold. A diagonal stands for a random choice, a "
        "diamond for this plan.",
        spec={"height": 260, "layer": layers},
        columns=columns,
    )


def _beside(taken: float) -> Spec:
    """Where words stand beside a line, so that they stay on the chart."""
    return {"align": "left", "dx": 6} if taken < _RIGHT else {"align": "right", "dx": -6}


def memory_chart(priced: tuple[Way, ...]) -> Chart:
    """Memory by use, a bar per way to train."""
    uses = list(USES)
    largest = max(way.use.total_bytes for way in priced)
    unit = memory(largest).split()[-1]
    step = _BYTES[unit]
    parts = [
        (way.name, use, size / step, uses.index(use))
        for way in priced
        for use, size in bytes_by_use(way.use).items()
    ]
    names = [way.name for way in priced]
    colours = {"domain": uses, "range": [item.light for item in SERIES]}
    y = {"field": "way", "type": "nominal", "sort": names, "title": None,
         "axis": {"ticks": False, "domain": False, "labelPadding": 8}}  # fmt: skip
    bars: Spec = {
        "mark": {"type": "bar", "height": {"band": 0.6}, "stroke": HALO.light, "strokeWidth": 1},
        "encoding": {
            "x": {"field": "size", "type": "quantitative", "title": unit, "stack": "zero",
                  "axis": {"tickCount": 5}},
            "color": {"field": "use", "type": "nominal", "title": None, "scale": colours,
                      "legend": {"symbolType": "square"}},
            "order": {"field": "order", "type": "quantitative"},
        },
    }  # fmt: skip
    sums: Spec = {
        "data": {"values": [{"way": way.name, "size": way.use.total_bytes / step,
                             "text": memory(way.use.total_bytes)} for way in priced]},
        "mark": {"type": "text", "color": INK.light, "align": "left", "dx": 6},
        "encoding": {"x": {"field": "size", "type": "quantitative",
                           "scale": {"domainMax": 1.25 * largest / step, "nice": False}},
                     "text": {"field": "text", "type": "nominal"}},
    }  # fmt: skip
    return Chart(
        name="memory",
        title="Memory to train",
        description="Stacked bars of training memory by use for three ways to train; the table "
        "beneath holds the numbers.",
        spec={"height": 46 * len(priced), "encoding": {"y": y}, "layer": [bars, sums]},
        columns={
            "way": [part[0] for part in parts],
            "use": [part[1] for part in parts],
            "size": [part[2] for part in parts],
            "order": [part[3] for part in parts],
        },
    )
