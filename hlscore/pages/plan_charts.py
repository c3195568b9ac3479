"""Charts of a plan: stability of the choice, cumulative scores, and training memory."""

from __future__ import annotations

from hlscore.pages.charts import (
    FULL_SIGN,
    LIMIT_RULE,
    SHARE_SCALE,
    TOOLTIP,
    Chart,
    Spec,
    category,
    constant,
    number,
)
from hlscore.pages.content import Content, Unit
from hlscore.pages.module_charts import bars_chart, heat_chart, tail_chart
from hlscore.pages.palette import BAND, FULL, HALO, INK, MARK, MUTED, REST, SERIES, SPREAD
from hlscore.planning.sums import BORDERLINE
from hlscore.wording import memory

_MOST_POINTS = 400
_FEW_MODULES = 12
_RIGHT_SIDE = 0.75
_BYTES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def charts_of(content: Content) -> dict[str, Chart]:
    """The charts of a report by name, in the order in which they are read."""
    found = (
        heat_chart(content),
        bars_chart(content),
        tail_chart(content),
        stability_chart(content),
        *(cumulative_chart(content, unit) for unit in content.cumulative),
        memory_chart(content),
    )
    return {chart.name: chart for chart in found if chart is not None}


def stability_chart(content: Content) -> Chart | None:
    """The share of resamples that select each module, over its place.

    `None` where the plan holds no such shares, or there was nothing to choose.
    """
    modules, full = len(content.lines), len(content.full_lines)
    known = [(place, line) for place, line in enumerate(content.lines) if line.chosen is not None]
    if not known or full in (0, modules):
        return None
    shown = known[:: modules_per_point(len(known))]
    share = {"title": "chosen in", **SHARE_SCALE}
    # An axis of few places would get ticks between them.
    ticks = {"values": list(range(1, modules + 1))} if modules <= _FEW_MODULES else {}
    place = number(
        "place",
        title=f"place by {content.score.name}",
        scale={"domain": [0, modules + 1], "nice": False},
        axis={"grid": False, **ticks},
    )
    low, high = BORDERLINE
    domain = ["trained in full", "not in full"]

    def style(values: list[str]) -> Spec:
        return category("train", title=None, scale={"domain": domain, "range": values})

    layers: list[Spec] = [
        constant(
            {"type": "rect", "color": BAND.light},
            {"y": number("low", **share), "y2": {"field": "high"}},
            {"low": low, "high": high},
        ),
        {
            "mark": {"type": "point", "filled": True, "opacity": 1, "size": 90,
                     "stroke": HALO.light, "strokeWidth": 0.8},
            "encoding": {
                "x": place,
                "y": number("chosen", **share),
                "fill": style([FULL.light, REST.light]),
                "shape": style(["diamond", "circle"]),
                **TOOLTIP,
            },
        },
    ]  # fmt: skip
    if content.first_places_full:
        layers.insert(1, constant(LIMIT_RULE, {"x": number("place")}, {"place": full + 0.5}))
    return Chart(
        name="stability",
        title="Selection by resamples of the probes",
        description="A point per module: its place, and the share of resamples in which it is "
        "selected. A band marks 10 % to 90 %. The table of all modules holds the numbers.",
        spec={"height": 240, "layer": layers},
        columns={
            "id": [at for at, _ in shown],
            "place": [line.row.rank for _, line in shown],
            "chosen": [line.chosen for _, line in shown],
            "train": [domain[0 if line.full else 1] for _, line in shown],
        },
    )


def modules_per_point(modules: int) -> int:
    """Of how many modules the chart of stability draws one."""
    return max(1, -(-modules // _MOST_POINTS))


def cumulative_chart(content: Content, unit: Unit) -> Chart:
    """Share of all positive scores in the best modules, over their share of the model."""
    found = content.cumulative[unit]
    x = number("taken", **SHARE_SCALE, title=f"share of {unit} in full")
    y = number("held", **SHARE_SCALE, title="share of positive scores")
    at: Spec = {"x": x, "y": y}
    columns: dict[str, tuple[float, ...]] = {"taken": found.taken, "held": found.held}
    layers: list[Spec] = []
    if found.low:
        columns |= {"low": found.low, "high": found.high}
        layers.append(
            {"mark": {"type": "area", "color": SPREAD.light, "opacity": 1},
             "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}}
        )  # fmt: skip
    plan = {"taken": found.plan_taken, "held": found.plan_held}
    on_left = found.plan_taken < _RIGHT_SIDE  # words stay on the chart
    beside = {"align": "left", "dx": 6} if on_left else {"align": "right", "dx": -6}
    layers += [
        constant(
            {"type": "line", "color": MUTED.light, "strokeDash": [3, 4], "strokeWidth": 1.5},
            at, {"taken": 0, "held": 0}, {"taken": 1, "held": 1},
        ),
        constant(
            {"type": "text", "color": MUTED.light, "text": "random choice", "align": "right",
             "baseline": "top", "dx": -4, "dy": 6},
            at, {"taken": 1, "held": 0.8},
        ),
        {"mark": {"type": "line", "color": FULL.light, "strokeWidth": 2.5}, "encoding": at},
        constant(LIMIT_RULE, {"x": x}, plan),
        constant({**FULL_SIGN, "size": 110}, at, plan),
        constant(
            {"type": "text", "color": MARK.light, "baseline": "bottom", **beside, "dy": -4,
             "text": "this plan"},
            {"x": x, "y": {"datum": 0, "type": "quantitative"}}, plan,
        ),
    ]  # fmt: skip
    return Chart(
        name=f"cumulative-{unit}",
        title=f"Cumulative scores by share of {unit}",
        description=f"A curve over the share of {unit} trained in full, the best first: their "
        "share of the sum of positive scores. A diagonal stands for a random choice, a diamond "
        "for this plan.",
        spec={"height": 260, "layer": layers},
        columns=columns,
    )


def memory_chart(content: Content) -> Chart:
    """Memory by use, a bar for the plan and for each alternative."""
    costs = content.costs
    largest = max(cost.use.total_bytes for cost in costs)
    unit = memory(largest).split()[-1]
    parts = [
        (cost.name, use, size / _BYTES[unit], place)
        for cost in costs
        for place, (use, size) in enumerate(cost.parts.items())
    ]
    y = category("way", sort=[cost.name for cost in costs], title=None,
                 axis={"ticks": False, "domain": False, "labelPadding": 8})  # fmt: skip
    colours = {"domain": list(costs[0].parts), "range": [item.light for item in SERIES]}
    bars: Spec = {
        "mark": {"type": "bar", "height": {"band": 0.6}, "stroke": HALO.light, "strokeWidth": 1},
        "encoding": {
            "x": number("size", title=unit, stack="zero", axis={"tickCount": 5}),
            "color": category("use", title=None, scale=colours, legend={"symbolType": "square"}),
            "order": number("order"),
        },
    }
    sums = constant(
        {"type": "text", "color": INK.light, "align": "left", "dx": 6},
        {
            "x": number("size", scale={"domainMax": 1.25 * largest / _BYTES[unit], "nice": False}),
            "text": category("text"),
        },
        *(
            {
                "way": cost.name,
                "size": cost.use.total_bytes / _BYTES[unit],
                "text": memory(cost.use.total_bytes),
            }
            for cost in costs
        ),
    )
    return Chart(
        name="memory",
        title="Memory to train",
        description="Stacked bars of training memory by use for three ways to train; the table "
        "below holds the numbers.",
        spec={"height": 46 * len(costs), "encoding": {"y": y}, "layer": [bars, sums]},
        columns={
            "way": [part[0] for part in parts],
            "use": [part[1] for part in parts],
            "size": [part[2] for part in parts],
            "order": [part[3] for part in parts],
        },
    )
