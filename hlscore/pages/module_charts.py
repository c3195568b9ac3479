"""Charts of modules: where in the model the score is, which modules lead, and one tail curve."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from hlscore.pages.charts import FULL_SIGN, TOLD, UNSIGNED, Chart, Spec, number_axis, signed
from hlscore.pages.content import Content, Line
from hlscore.pages.figures import level, level_names
from hlscore.pages.palette import FULL, GRID, HALO, INK, MARK, MUTED, PAPER, RAMP, REST, RULE
from hlscore.views.heatmap import kind_labels
from hlscore.views.wording import count

TOP = 40

_MOST_COLUMNS = 128
_WIDE_COLUMNS = 64
_MOST_KINDS = 60
_OTHER_KINDS = "other kinds"
_MODE_COLOURS = {"full": FULL.light, "LoRA": REST.light, "frozen": RULE.light}
_OUTLINED = [{"filter": "datum.id === shown"}]


def heat_chart(content: Content) -> Chart | None:
    """Scores by layer and kind; a diamond marks what is trained in full.

    Modules that share a cell are shown by the highest of them: of models with many layers, several
    layers share a column.

    Returns:
        The chart; `None` where no module lies in a numbered layer.
    """
    cells = _cells(content.lines)
    if not cells:
        return None
    largest = max(line.score or 0.0 for line in content.lines)
    first = {key: [content.lines[place] for place in places] for key, places in cells.items()}
    levels = level_names()
    columns: dict[str, Sequence[Any]] = {
        "id": [places[0] for places in cells.values()],
        "layer": [layer for layer, _ in cells],
        "kind": [signed(kind) for _, kind in cells],
        "level": [levels[level(lines[0].score, largest)] for lines in first.values()],
        "full": [sum(line.full for line in lines) for lines in first.values()],
        "modules": [len(lines) for lines in first.values()],
    }
    place = {
        "x": {"field": "layer", "type": "ordinal", "title": "layer",
              "axis": {"labelAngle": 0, "labelOverlap": True, "ticks": False, "domain": False}},
        "y": {"field": "kind", "type": "nominal", "title": None, "axis": UNSIGNED,
              "sort": [signed(kind) for kind in _kinds(content.lines)]},
    }  # fmt: skip
    ramp = {"domain": list(levels), "range": [item.light for item in RAMP]}
    legend = {"title": f"{content.score.name}, share of the highest", "symbolType": "square"}
    shade = {"field": "level", "type": "nominal", "scale": ramp, "legend": legend}
    spec: Spec = {
        "height": 24 * len({kind for _, kind in cells}),
        "encoding": place,
        "layer": [
            {"mark": {"type": "rect", "stroke": PAPER.light, "strokeWidth": 1},
             "encoding": {"color": shade, **TOLD}},
            {"transform": [{"filter": "datum.full > 0"}], "mark": _sign(cells), "encoding": TOLD},
            {"transform": _OUTLINED, "encoding": TOLD,
             "mark": {"type": "rect", "fillOpacity": 0, "fill": MARK.light, "stroke": MARK.light,
                      "strokeWidth": 3}},
        ],
    }  # fmt: skip
    name = content.score.name
    return Chart(
        name="heat",
        title=f"{name} by layer and kind of module",
        description=f"Heat map of {name}: a row per kind of module, a column per layer. "
        f"{count(len(content.full_lines), 'module')} trained in full carry a diamond. "
        "The table of all modules holds the numbers.",
        spec=spec,
        columns=columns,
    )


def _sign(cells: Iterable[tuple[int, str]]) -> Spec:
    """The mark of full training, small enough for the cells of many layers."""
    columns = len({layer for layer, _ in cells})
    return FULL_SIGN if columns <= _WIDE_COLUMNS else {**FULL_SIGN, "size": 22, "strokeWidth": 0.8}


def columns_of(lines: Sequence[Line]) -> int:
    """How many layers share a column of the heat map."""
    layers = {line.row.layer for line in lines if line.row.layer is not None}
    return max(1, -(-len(layers) // _MOST_COLUMNS))


def _cells(lines: Sequence[Line]) -> dict[tuple[int, str], list[int]]:
    """Places of the lines in each cell, the best first; the cells from left to right."""
    wide = columns_of(lines)
    layers = sorted({line.row.layer for line in lines if line.row.layer is not None})
    column = {layer: layers[place - place % wide] for place, layer in enumerate(layers)}
    labels, known = _labels(lines), set(_kinds(lines))
    cells: dict[tuple[int, str], list[int]] = {}
    for place, line in enumerate(lines):
        if line.row.layer is not None:
            kind = labels[line.row.module]
            key = (column[line.row.layer], kind if kind in known else _OTHER_KINDS)
            cells.setdefault(key, []).append(place)
    return dict(sorted(cells.items()))


def _labels(lines: Sequence[Line]) -> dict[str, str]:
    placed = [line.row for line in lines if line.row.layer is not None]
    labels = kind_labels(placed)
    if len(set(labels.values())) <= _MOST_KINDS:
        return labels
    return {row.module: row.kind for row in placed}  # a stack of single experts


def _kinds(lines: Sequence[Line]) -> list[str]:
    labels = _labels(lines)
    placed = sorted(
        (line.row for line in lines if line.row.layer is not None),
        key=lambda row: (row.block, row.kind),
    )
    kinds = list(dict.fromkeys(labels[row.module] for row in placed))
    return kinds if len(kinds) <= _MOST_KINDS else [*kinds[: _MOST_KINDS - 1], _OTHER_KINDS]


def bars_chart(content: Content) -> Chart:
    """The highest scores with their 95 % intervals and the line of the budget."""
    lines = content.lines[:TOP]
    labels = [signed(name) for name in short_names(content.lines)[:TOP]]
    modes = [_mode(line) for line in lines]
    named = [name for name in _MODE_COLOURS if name in modes]
    scale = {"domain": named, "range": [_MODE_COLOURS[name] for name in named]}
    largest = max((abs(line.score or 0.0) for line in lines), default=0.0)
    axis = number_axis(largest)
    x = {"field": "score", "type": "quantitative", "title": content.score.name, "axis": axis}
    layers: list[Spec] = [
        {"mark": {"type": "bar", "height": {"band": 0.62}},
         "encoding": {"color": {"field": "train", "type": "nominal", "scale": scale,
                                "legend": {"title": "trained as", "symbolType": "square"}}}},
    ]  # fmt: skip
    if any(line.low is not None for line in lines):
        ends: Spec = {"x": {"field": "low", "type": "quantitative"}, "x2": {"field": "high"}}
        for colour, width in ((HALO, 2.8), (INK, 1.4)):  # a dark line is lost on a dark bar
            mark = {"type": "rule", "color": colour.light, "strokeWidth": width}
            layers.append({"mark": mark, "encoding": ends})
    layers.append(
        {"transform": [{"filter": "datum.train === 'full'"}], "mark": FULL_SIGN,
         "encoding": {"x": {"datum": 0, "type": "quantitative"}}}
    )  # fmt: skip
    number = len(content.full_lines)
    if budget_line_shown(content):
        layers += _budget_line(labels[number - 1], last=number == len(lines))
    layers.append(
        {"transform": _OUTLINED,
         "mark": {"type": "rect", "fillOpacity": 0, "fill": MARK.light, "stroke": MARK.light},
         "encoding": {"x": {"value": 0}, "x2": {"value": "width"}}}
    )  # fmt: skip
    layers.append(  # a bar may be too short to click
        {"mark": {"type": "rect", "fillOpacity": 0, "fill": PAPER.light},
         "encoding": {"x": {"value": 0}, "x2": {"value": "width"}, **TOLD}}
    )  # fmt: skip
    return Chart(
        name="bars",
        title=_bars_title(len(lines), len(content.lines)),
        description=f"Bars of {content.score.name} for the {len(lines)} highest modules, with 95 % "
        f"intervals{' and a line where the budget ends' if budget_line_shown(content) else ''}. "
        "The table of all modules holds the numbers.",
        spec={
            "height": 19 * len(lines),
            "encoding": {
                "y": {"field": "label", "type": "nominal", "sort": None, "title": None,
                      "axis": UNSIGNED},
                "x": x,
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
    )  # fmt: skip


def budget_line_shown(content: Content) -> bool:
    """Whether the bars show where the budget ends."""
    number = len(content.full_lines)
    return content.first_places_full and number <= TOP and number < len(content.lines)


def _bars_title(shown: int, modules: int) -> str:
    if shown < modules:
        return f"The {shown} highest of {count(modules, 'module')}"
    return f"All {modules} modules, the highest first" if modules > 1 else "The only module"


def _budget_line(label: str, *, last: bool) -> list[Spec]:
    """A line under a bar, and its name on a ground that keeps it readable over the next one."""
    under = {"datum": label, "type": "nominal", "bandPosition": 1}
    line = {
        "mark": {"type": "rule", "color": MARK.light, "strokeWidth": 2, "strokeDash": [6, 4]},
        "encoding": {"y": under, "x": {"value": 0}, "x2": {"value": "width"}},
    }
    said = {"type": "text", "align": "right", "baseline": "bottom" if last else "top",
            "dy": -4 if last else 4, "text": "the budget ends here"}  # fmt: skip
    ground = {**said, "color": PAPER.light, "stroke": PAPER.light, "strokeWidth": 5}
    place = {"y": under, "x": {"value": "width"}}
    texts = [{"mark": mark, "encoding": place} for mark in (ground, {**said, "color": MARK.light})]
    return [{"data": {"values": [{}]}, "layer": [line, *texts]}]


def _mode(line: Line) -> str:
    return "LoRA" if line.mode == "lora" else line.mode


def short_names(lines: Sequence[Line]) -> list[str]:
    """Names without what all of them begin with, up to a dot.

    Returns:
        A name per line; no two are equal.
    """
    names = [line.row.module for line in lines]
    shared = len(shared_start(lines))
    return [name[shared:] for name in names]


def shared_start(lines: Sequence[Line]) -> str:
    """What the names of all modules begin with, up to the last dot in it."""
    names = [line.row.module for line in lines]
    ends = zip(min(names), max(names), strict=False)
    alike = takewhile(lambda pair: pair[0] == pair[1], ends)
    shared = "".join(letter for letter, _ in alike)
    return shared[: shared.rfind(".") + 1] if len(lines) > 1 else ""


def tail_chart(content: Content, place: int = 0) -> Chart:
    """What a LoRA of each rank leaves of the gradient of one module."""
    row, rank = content.lines[place].row, content.plan.lora.rank
    curves = {"tail": row.tail_curve, "hls": row.hls_curve}
    points = [
        (item, value, name)
        for name, curve in curves.items()
        for item, value in zip(row.curve_ranks, curve, strict=True)
    ]
    ranks = sorted({item for line in content.lines for item in line.row.curve_ranks})
    curve = {"field": "curve", "type": "nominal", "title": None}
    domain, legend = {"domain": ["tail", "hls"]}, {"symbolType": "stroke"}
    dash = {"scale": {**domain, "range": [[5, 4], [1, 0]]}, "legend": legend}
    colour = {"scale": {**domain, "range": [MUTED.light, FULL.light]}, "legend": legend}
    y = {
        "field": "value",
        "type": "quantitative",
        "title": "not reached by LoRA",
        "axis": number_axis(max((abs(value) for _, value, _ in points), default=0.0)),
    }
    x = {"field": "rank", "type": "ordinal", "title": "LoRA rank", "scale": {"domain": ranks},
         "axis": {"labelAngle": 0, "labelOverlap": True}}  # fmt: skip
    lines: Spec = {
        "mark": {"type": "line", "point": {"filled": True, "size": 45}, "strokeWidth": 2},
        "encoding": {"x": x, "y": y, "color": {**curve, **colour}, "strokeDash": {**curve, **dash}},
    }
    rule: Spec = {
        "data": {"values": [{"rank": rank}] if rank in ranks else []},
        "encoding": {"x": {"field": "rank", "type": "ordinal"}},
        "layer": [
            {"mark": {"type": "rule", "color": MARK.light, "strokeWidth": 2, "strokeDash": [6, 4]}},
            {"mark": {"type": "text", "color": MARK.light, "align": "left", "baseline": "top",
                      "dx": 5, "text": f"rank {rank}"}, "encoding": {"y": {"value": 2}}},
        ],
    }  # fmt: skip
    zero: Spec = {
        "data": {"values": [{"value": 0}]},
        "mark": {"type": "rule", "color": GRID.light, "strokeWidth": 2},
        "encoding": {"y": {"field": "value", "type": "quantitative"}},
    }
    return Chart(
        name="tail",
        title=row.module,
        description="Lines over the LoRA rank: tail, the energy of the mean gradient that LoRA "
        "of that rank cannot reach, and hls, the part of it that both halves of the probes agree "
        f"on. A line marks rank {rank}.",
        spec={"height": 260, "layer": [zero, lines, rule]},
        columns={
            "rank": [item for item, _, _ in points],
            "value": [value for _, value, _ in points],
            "curve": [name for _, _, name in points],
        },
    )
