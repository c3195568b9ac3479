"""Charts of modules: where in the model the score is, which modules lead, and one tail curve."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, takewhile

from hlscore.pages.charts import (
    FULL_SIGN,
    LIMIT_RULE,
    TOOLTIP,
    UNSIGNED,
    Chart,
    Spec,
    category,
    constant,
    number,
    number_axis,
    signed,
)
from hlscore.pages.content import Content, Line
from hlscore.pages.palette import FULL, GRID, HALO, INK, MARK, MUTED, PAPER, RAMP, REST, RULE
from hlscore.views.drawings import kind_labels, shade_of
from hlscore.wording import count

TOP = 40

_MOST_COLUMNS = 128
_WIDE_COLUMNS = 64
_MOST_KINDS = 60
_OTHER_KINDS = "other kinds"
_MODE_COLOURS = {"full": FULL.light, "LoRA": REST.light, "frozen": RULE.light}
_OUTLINE = {"type": "rect", "fillOpacity": 0, "fill": MARK.light, "stroke": MARK.light}
_OUTLINED = [{"filter": "datum.id === shown"}]


def level_names() -> tuple[str, ...]:
    """What each shade of the heat map stands for, as shares of the largest score."""
    steps = len(RAMP) - 2
    shown = [f"{100 * ((place + 0.5) / steps) ** 2:.0f}" for place in range(steps)]
    between = [f"{low} to {high} %" for low, high in pairwise(shown)]
    return ("zero or below", f"up to {shown[0]} %", *between, f"over {shown[-1]} %")


def heat_chart(content: Content) -> Chart | None:
    """Scores by layer and kind; a diamond marks what is trained in full.

    Modules that share a cell are shown by the highest of them; in models with many layers several
    layers share a column. `None` where no module lies in a numbered layer.
    """
    lines = content.lines
    placed = [line.row for line in lines if line.row.layer is not None]
    if not placed:
        return None
    labels = kind_labels(placed)
    if len(set(labels.values())) > _MOST_KINDS:  # a stack of single experts
        labels = {row.module: row.kind for row in placed}
    by_block = sorted(placed, key=lambda row: (row.block, row.kind))
    kinds = list(dict.fromkeys(labels[row.module] for row in by_block))
    if len(kinds) > _MOST_KINDS:
        kinds = [*kinds[: _MOST_KINDS - 1], _OTHER_KINDS]
    wide = layers_per_column(lines)
    layers = sorted({row.layer for row in placed if row.layer is not None})
    column = {layer: layers[place - place % wide] for place, layer in enumerate(layers)}
    found: dict[tuple[int, str], list[int]] = {}
    for place, line in enumerate(lines):
        if line.row.layer is not None:
            kind = labels[line.row.module]
            cell = (column[line.row.layer], kind if kind in kinds else _OTHER_KINDS)
            found.setdefault(cell, []).append(place)
    cells = dict(sorted(found.items()))
    levels, name = level_names(), content.score.name
    largest = max(line.score or 0.0 for line in lines)
    many = len({layer for layer, _ in cells}) > _WIDE_COLUMNS
    sign = {**FULL_SIGN, "size": 22, "strokeWidth": 0.8} if many else FULL_SIGN
    shade = category(
        "level",
        scale={"domain": list(levels), "range": [item.light for item in RAMP]},
        legend={"title": f"{name}, share of the highest", "symbolType": "square"},
    )
    spec: Spec = {
        "height": 24 * len({kind for _, kind in cells}),
        "encoding": {
            "x": {"field": "layer", "type": "ordinal", "title": "layer",
                  "axis": {"labelAngle": 0, "labelOverlap": True, "ticks": False,
                           "domain": False}},
            "y": category("kind", title=None, axis=UNSIGNED, sort=[signed(kind) for kind in kinds]),
        },
        "layer": [
            {"mark": {"type": "rect", "stroke": PAPER.light, "strokeWidth": 1},
             "encoding": {"color": shade, **TOOLTIP}},
            {"transform": [{"filter": "datum.full > 0"}], "mark": sign, "encoding": TOOLTIP},
            {"transform": _OUTLINED, "encoding": TOOLTIP, "mark": {**_OUTLINE, "strokeWidth": 3}},
        ],
    }  # fmt: skip
    return Chart(
        name="heat",
        title=f"{name} by layer and kind of module",
        description=f"Heat map of {name}: a row per kind of module, a column per layer. "
        f"{count(len(content.full_lines), 'module')} trained in full carry a diamond. "
        "The table of all modules holds the numbers.",
        spec=spec,
        columns={
            "id": [places[0] for places in cells.values()],
            "layer": [layer for layer, _ in cells],
            "kind": [signed(kind) for _, kind in cells],
            "level": [
                levels[shade_of(lines[places[0]].score, largest, len(RAMP) - 1)]
                for places in cells.values()
            ],
            "full": [sum(lines[place].full for place in places) for places in cells.values()],
            "modules": [len(places) for places in cells.values()],
        },
    )


def layers_per_column(lines: Sequence[Line]) -> int:
    """How many layers share a column of the heat map."""
    layers = {line.row.layer for line in lines if line.row.layer is not None}
    return max(1, -(-len(layers) // _MOST_COLUMNS))


def bars_chart(content: Content) -> Chart:
    """The highest scores with their 95 % intervals and the line of the budget."""
    lines = content.lines[:TOP]
    start = len(shared_start(content.lines))
    labels = [signed(line.row.module[start:]) for line in lines]
    modes = ["LoRA" if line.mode == "lora" else line.mode for line in lines]
    scale = {
        "domain": [name for name in _MODE_COLOURS if name in modes],
        "range": [colour for name, colour in _MODE_COLOURS.items() if name in modes],
    }
    row: Spec = {"x": {"value": 0}, "x2": {"value": "width"}}
    legend = {"title": "trained as", "symbolType": "square"}
    layers: list[Spec] = [
        {"mark": {"type": "bar", "height": {"band": 0.62}},
         "encoding": {"color": category("train", scale=scale, legend=legend)}},
    ]  # fmt: skip
    if any(line.low is not None for line in lines):
        ends: Spec = {"x": number("low"), "x2": {"field": "high"}}
        for colour, width in ((HALO, 2.8), (INK, 1.4)):  # a dark line is lost on a dark bar
            mark = {"type": "rule", "color": colour.light, "strokeWidth": width}
            layers.append({"mark": mark, "encoding": ends})
    layers.append(
        {"transform": [{"filter": "datum.train === 'full'"}], "mark": FULL_SIGN,
         "encoding": {"x": {"datum": 0, "type": "quantitative"}}}
    )  # fmt: skip
    if shows_budget_line(content):
        last = len(content.full_lines)
        layers.append(_budget_line(labels[last - 1], last=last == len(lines)))
    layers.append({"transform": _OUTLINED, "mark": _OUTLINE, "encoding": row})
    layers.append(  # a bar may be too short to click
        {"mark": {"type": "rect", "fillOpacity": 0, "fill": PAPER.light},
         "encoding": {**row, **TOOLTIP}}
    )  # fmt: skip
    modules = len(content.lines)
    title = f"All {modules} modules, the highest first" if modules > 1 else "The only module"
    if len(lines) < modules:
        title = f"The {len(lines)} highest of {count(modules, 'module')}"
    axis = number_axis(max(abs(line.score or 0.0) for line in lines))
    return Chart(
        name="bars",
        title=title,
        description=f"Bars of {content.score.name} for the {len(lines)} highest modules, with 95 % "
        f"intervals{' and a line where the budget ends' if shows_budget_line(content) else ''}. "
        "The table of all modules holds the numbers.",
        spec={
            "height": 19 * len(lines),
            "encoding": {
                "y": category("label", sort=None, title=None, axis=UNSIGNED),
                "x": number("score", title=content.score.name, axis=axis),
            },
            "layer": layers,
        },
        columns={
            "id": list(range(len(lines))),
            "label": labels,
            "score": [line.score for line in lines],
            "low": [line.low for line in lines],
            "high": [line.high for line in lines],
            "train": modes,
        },
    )


def shows_budget_line(content: Content) -> bool:
    """Whether the bars show where the budget ends."""
    number = len(content.full_lines)
    return content.first_places_full and number <= TOP and number < len(content.lines)


def _budget_line(label: str, *, last: bool) -> Spec:
    """A line under a bar, and its name on a ground that keeps it readable over the next one."""
    under = {"datum": label, "type": "nominal", "bandPosition": 1}
    line = {
        "mark": LIMIT_RULE,
        "encoding": {"y": under, "x": {"value": 0}, "x2": {"value": "width"}},
    }
    text = {"type": "text", "align": "right", "baseline": "bottom" if last else "top",
            "dy": -4 if last else 4, "text": "the budget ends here"}  # fmt: skip
    ground = {**text, "color": PAPER.light, "stroke": PAPER.light, "strokeWidth": 5}
    place = {"y": under, "x": {"value": "width"}}
    texts = [{"mark": mark, "encoding": place} for mark in (ground, {**text, "color": MARK.light})]
    return {"data": {"values": [{}]}, "layer": [line, *texts]}


def shared_start(lines: Sequence[Line]) -> str:
    """What the names of all modules begin with, up to the last dot in it."""
    if len(lines) < 2:
        return ""
    names = [line.row.module for line in lines]
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(min(names), max(names), strict=False))
    shared = "".join(letter for letter, _ in pairs)
    return shared[: shared.rfind(".") + 1]


def tail_chart(content: Content) -> Chart | None:
    """The part of the first module's gradient that LoRA of each rank cannot represent."""
    row, rank = content.lines[0].row, content.plan.lora.rank
    if not row.curve_ranks:
        return None
    points = [
        (item, value, name)
        for name, curve in (("tail", row.tail_curve), ("hls", row.hls_curve))
        for item, value in zip(row.curve_ranks, curve, strict=True)
    ]
    ranks = sorted({item for line in content.lines for item in line.row.curve_ranks})

    def style(values: list[object]) -> Spec:
        scale = {"domain": ["tail", "hls"], "range": values}
        return category("curve", title=None, scale=scale, legend={"symbolType": "stroke"})

    x = {"field": "rank", "type": "ordinal", "title": "LoRA rank", "scale": {"domain": ranks},
         "axis": {"labelAngle": 0, "labelOverlap": True}}  # fmt: skip
    axis = number_axis(max(abs(value) for _, value, _ in points))
    lines: Spec = {
        "mark": {"type": "line", "point": {"filled": True, "size": 45}, "strokeWidth": 2},
        "encoding": {
            "x": x,
            "y": number("value", title="not captured by LoRA", axis=axis),
            "color": style([MUTED.light, FULL.light]),
            "strokeDash": style([[5, 4], [1, 0]]),
        },
    }
    rule: Spec = {
        "data": {"values": [{"rank": rank}] if rank in ranks else []},
        "encoding": {"x": {"field": "rank", "type": "ordinal"}},
        "layer": [
            {"mark": LIMIT_RULE},
            {"mark": {"type": "text", "color": MARK.light, "align": "left", "baseline": "top",
                      "dx": 5, "text": f"rank {rank}"}, "encoding": {"y": {"value": 2}}},
        ],
    }  # fmt: skip
    grid = {"type": "rule", "color": GRID.light, "strokeWidth": 2}
    zero = constant(grid, {"y": number("value")}, {"value": 0})
    return Chart(
        name="tail",
        title=row.module,
        description="Lines over the LoRA rank: tail, the energy of the mean gradient that LoRA of "
        "that rank cannot represent, and hls, the part of it on which both halves of the probes "
        f"agree. A line marks rank {rank}.",
        spec={"height": 260, "layer": [zero, lines, rule]},
        columns={
            "rank": [item for item, _, _ in points],
            "value": [value for _, value, _ in points],
            "curve": [name for _, _, name in points],
        },
    )
