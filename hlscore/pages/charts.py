"""The charts of a report: where the score is, which modules lead, how sure, and at what cost."""

from __future__ import annotations

import textwrap
from itertools import pairwise, takewhile

from hlscore.pages import palette, sentences
from hlscore.pages.content import USES, Content, Unit
from hlscore.pages.vega import (
    FULL_SIGN,
    LIMIT_RULE,
    PLAIN_AXIS,
    SHARE_SCALE,
    SHOWN,
    TOOLTIP,
    UNSIGNED,
    ZERO,
    Chart,
    Spec,
    category,
    columns,
    layer,
    number,
    number_axis,
    signed,
    whole,
)
from hlscore.planning.parts import BORDERLINE
from hlscore.views.drawings import kind_labels, shade_of
from hlscore.views.summary import memory_settings, reselection
from hlscore.wording import count, memory

TOP = 40  # bars, and rows of the Markdown report

_MOST_KINDS = 60
_OUTLINE: Spec = {
    "type": "rect", "fillOpacity": 0, "fill": palette.MARK, "stroke": palette.MARK,
}  # fmt: skip
_IS_SHOWN = "datum.id === shown"
_TABLE = "The table of all modules holds the numbers."
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


def poster(content: Content) -> Spec:
    """All charts in one image, under the headline; those of half the width in pairs."""
    charts = charts_of(content)
    widths = {"heat": 900, "bars": 900, "memory": 740}
    apart = {"scale": dict.fromkeys(("color", "fill", "shape", "strokeDash"), "independent")}
    rows: list[Spec] = []
    halves: list[Spec] = []
    for name, chart in charts.items():
        width = widths.get(name, 390)
        title: Spec = {"text": chart.title, "subtitle": chart.subtitle, "anchor": "start",
                       "limit": width}  # fmt: skip
        (rows if name in widths else halves).append({**chart.view(width), "title": title})
    pairs: list[Spec] = [
        {"hconcat": halves[place : place + 2], "spacing": 60, "resolve": apart}
        for place in range(0, len(halves), 2)
    ]
    text = f"{sentences.headline(content)} {sentences.certainty(content)}"
    unproven = "No score is proven. The baseline is a plain LoRA with as many trained parameters."
    title = {
        "text": sentences.heading(content),
        "subtitle": [*textwrap.wrap(text, 150), unproven],
        "fontSize": 22,
        "subtitleFontSize": 13,
        "subtitlePadding": 8,
        "offset": 24,
        "frame": "bounds",
    }
    return whole(
        {"vconcat": [*rows[:-1], *pairs, rows[-1]]},
        title=title,
        params=SHOWN,
        datasets={name: chart.rows() for name, chart in charts.items()},
        padding=28,
        spacing=36,
        resolve=apart,
    )


def heat_chart(content: Content) -> Chart | None:
    """Scores by layer and kind; a diamond marks what is trained in full.

    Modules that share a cell are shown by the highest of them. `None` where no module lies in a
    numbered layer.
    """
    lines, name = content.lines, content.score.name
    placed = [line.row for line in lines if line.row.layer is not None]
    if not placed:
        return None
    labels = kind_labels(placed)
    if len(set(labels.values())) > _MOST_KINDS:  # a stack of single experts
        labels = {module: label.rpartition(".")[2] for module, label in labels.items()}
    kinds = dict.fromkeys(labels.values())
    cells: dict[tuple[int, str], list[int]] = {}
    for place, line in enumerate(lines):
        if line.row.layer is not None:
            cells.setdefault((line.row.layer, labels[line.row.module]), []).append(place)

    # Shades are steps of the square root of the score.
    steps = len(palette.RAMP) - 2
    ends = [f"{100 * ((place + 0.5) / steps) ** 2:.0f}" for place in range(steps)]
    between = [f"{low} to {high} %" for low, high in pairwise(ends)]
    levels = ("zero or below", f"up to {ends[0]} %", *between, f"over {ends[-1]} %")
    largest = max(line.score or 0.0 for line in lines)
    legend = {"title": f"{name}, share of the highest", "symbolType": "square"}
    shade = category("level", dict(zip(levels, palette.RAMP, strict=True)), legend=legend)
    many = len({layer for layer, _ in cells}) > 64
    sign = {**FULL_SIGN, "size": 22, "strokeWidth": 0.8} if many else FULL_SIGN
    spec: Spec = {
        "height": 24 * len(kinds),
        "encoding": {
            "x": {"field": "layer", "type": "ordinal", "title": "layer",
                  "axis": {"labelAngle": 0, "labelOverlap": True, "ticks": False,
                           "domain": False}},
            "y": category("kind", title=None, axis=UNSIGNED, sort=[signed(kind) for kind in kinds]),
        },
        "layer": [
            layer({"color": shade, **TOOLTIP}, type="rect", stroke=palette.PAPER, strokeWidth=1),
            layer(TOOLTIP, where="datum.full > 0", **sign),
            layer(TOOLTIP, where=_IS_SHOWN, **_OUTLINE, strokeWidth=3),
        ],
    }  # fmt: skip

    rows = []
    for (at, kind), places in sorted(cells.items()):
        level = levels[shade_of(lines[places[0]].score, largest, len(levels) - 1)]
        full = sum(lines[place].full for place in places)
        rows.append((places[0], at, signed(kind), level, full, len(places)))
    what = (
        "more of the update is beyond LoRA: an amount, not a share of the module's own"
        if content.score.leaves_over
        else f"a higher {name} relative to the highest of all modules"
    )
    caption = (
        f"A darker cell (on a dark page: a lighter one) means {what}. A diamond marks a module "
        "that is trained in full."
    )
    if not content.any_positive:
        caption = "No score is above zero, so all cells look alike."
    elif outside := len(lines) - len(placed):
        caption += f" {count(outside, 'module')} outside the layers: see the table."
    return Chart(
        name="heat",
        title=f"{name} by layer and kind of module",
        subtitle="a diamond marks a module trained in full",
        caption=caption,
        description=f"Heat map of {name}: a row per kind of module, a column per layer. "
        f"{count(len(content.full_lines), 'module')} trained in full carry a diamond. {_TABLE}",
        spec=spec,
        columns=columns("id layer kind level full modules", rows),
    )


def bars_chart(content: Content) -> Chart:
    """The highest scores with their 95 % intervals and the line of the budget."""
    lines, modules, full = content.lines[:TOP], len(content.lines), len(content.full_lines)
    # What the names of all modules begin with, up to the last dot in it.
    parts = zip(*(line.row.module.split(".")[:-1] for line in content.lines), strict=False)
    alike = takewhile(lambda each: len(set(each)) == 1, parts if modules > 1 else ())
    shared = "".join(f"{each[0]}." for each in alike)
    labels = [signed(line.row.module.removeprefix(shared)) for line in lines]
    modes = ["LoRA" if line.mode == "lora" else line.mode for line in lines]
    colours = {"full": palette.FULL, "LoRA": palette.REST, "frozen": palette.RULE}
    colour = category(
        "train",
        {mode: colours[mode] for mode in colours if mode in modes},
        legend={"title": "trained as", "symbolType": "square"},
    )
    row: Spec = {"x": {"value": 0}, "x2": {"value": "width"}}
    layers = [layer({"color": colour}, type="bar", height={"band": 0.62})]
    if any(line.low is not None for line in lines):
        ends: Spec = {"x": number("low"), "x2": {"field": "high"}}
        layers += [
            layer(ends, type="rule", color=palette.HALO, strokeWidth=2.8),  # seen on dark bars
            layer(ends, type="rule", color=palette.INK, strokeWidth=1.4),
        ]
    layers.append(layer({"x": ZERO}, where="datum.train === 'full'", **FULL_SIGN))
    ends_here = content.first_places_full and full <= TOP and full < modules
    if ends_here:
        # A line under the last bar in full, and its name readable over the next one.
        under = {"datum": labels[full - 1], "type": "nominal", "bandPosition": 1}
        last = full == len(lines)
        place = {"y": under, "x": {"value": "width"}}
        text: Spec = {"type": "text", "align": "right", "baseline": "bottom" if last else "top",
                      "dy": -4 if last else 4, "text": "the budget ends here"}  # fmt: skip
        limit = [
            layer({"y": under, **row}, **LIMIT_RULE),
            layer(place, **text, color=palette.PAPER, stroke=palette.PAPER, strokeWidth=5),
            layer(place, **text, color=palette.MARK),
        ]
        layers.append({"data": {"values": [{}]}, "layer": limit})
    layers += [
        layer(row, where=_IS_SHOWN, **_OUTLINE),
        # A bar may be too short to click.
        layer({**row, **TOOLTIP}, type="rect", fillOpacity=0, fill=palette.PAPER),
    ]

    title = f"All {modules} modules, the highest first" if modules > 1 else "The only module"
    if len(lines) < modules:
        title = f"The {len(lines)} highest of {count(modules, 'module')}"
    caption = f"No intervals: {sentences.NO_RESAMPLES}."
    if content.replicates.shape[1]:
        caption = (
            "The thin line on a bar is the 95 % interval over resamples of the probes. An "
            "interval that crosses zero means: no measurable signal."
        )
    if content.first_places_full and full > TOP:
        caption += f" The budget ends at place {full:,}, beyond this chart."
    elif full and not content.first_places_full:
        caption += (
            " The modules in full are not exactly the first places (locks, sizes or another method "
            "decided too): diamonds mark them."
        )
    if shared:
        caption += f" Names omit their common beginning: {shared}"
    axis = number_axis(max(abs(line.score or 0.0) for line in lines))
    return Chart(
        name="bars",
        title=title,
        subtitle="bars with 95 % intervals",
        caption=caption,
        description=f"Bars of {content.score.name} for the {len(lines)} highest modules, with 95 % "
        f"intervals{' and a line where the budget ends' if ends_here else ''}. {_TABLE}",
        spec={
            "height": 19 * len(lines),
            "encoding": {
                "y": category("label", sort=None, title=None, axis=UNSIGNED),
                "x": number("score", title=content.score.name, axis=axis),
            },
            "layer": layers,
        },
        columns=columns(
            "id label train score low high",
            (
                (place, labels[place], modes[place], line.score, line.low, line.high)
                for place, line in enumerate(lines)
            ),
        ),
    )


def tail_chart(content: Content) -> Chart | None:
    """The part of the first module's gradient that LoRA of each rank cannot represent."""
    row, rank = content.lines[0].row, content.plan.lora.rank
    if not row.curve_ranks:
        return None
    ranks = sorted({item for line in content.lines for item in line.row.curve_ranks})
    legend = {"symbolType": "stroke"}
    encoding = {
        "x": {"field": "rank", "type": "ordinal", "title": "LoRA rank", "scale": {"domain": ranks},
              "axis": {"labelAngle": 0, "labelOverlap": True}},
        "y": number("value", title="not captured by LoRA",
                    axis=number_axis(max(map(abs, (*row.tail_curve, *row.hls_curve))))),
        "color": category("curve", {"tail": palette.MUTED, "hls": palette.FULL}, title=None,
                          legend=legend),
        "strokeDash": category("curve", {"tail": [5, 4], "hls": [1, 0]}, title=None, legend=legend),
    }  # fmt: skip
    name: Spec = {"type": "text", "align": "left", "baseline": "top", "dx": 5,
                  "color": palette.MARK, "text": f"rank {rank}"}  # fmt: skip
    rule: Spec = {
        "data": {"values": [{"rank": rank}] if rank in ranks else []},
        "encoding": {"x": {"field": "rank", "type": "ordinal"}},
        "layer": [{"mark": LIMIT_RULE}, layer({"y": {"value": 2}}, **name)],
    }
    zero = layer(
        {"y": number("value")}, {"value": 0}, type="rule", color=palette.GRID, strokeWidth=2
    )
    curves = layer(encoding, type="line", point={"filled": True, "size": 45}, strokeWidth=2)
    return Chart(
        name="tail",
        title=row.module,
        subtitle="what LoRA of each rank misses of the gradient",
        caption="The part of the module's gradient that LoRA of each rank misses, as an amount, "
        "not a share (rank 0 misses all of it). tail: all of that part, including noise of the "
        "probes. hls: the part on which two halves of the probes agree; below zero it is noise. "
        f"The dashed line marks rank {rank}, which the plan compares with.",
        description="Lines over the LoRA rank: tail, the energy of the mean gradient that LoRA of "
        "that rank cannot represent, and hls, the part of it on which both halves of the probes "
        f"agree. A line marks rank {rank}.",
        spec={"height": 260, "layer": [zero, curves, rule]},
        columns=columns(
            "rank value curve",
            (
                (item, value, name)
                for name, curve in (("tail", row.tail_curve), ("hls", row.hls_curve))
                for item, value in zip(row.curve_ranks, curve, strict=True)
            ),
        ),
    )


def stability_chart(content: Content) -> Chart | None:
    """The share of resamples that select each module, over its place.

    `None` where the plan holds no such shares, or there was nothing to choose.
    """
    plan, modules = content.plan, len(content.lines)
    known = [(place, line) for place, line in enumerate(content.lines) if line.chosen is not None]
    if not known or sentences.stability_unknown(content):
        return None
    share = {"title": "chosen in", **SHARE_SCALE}
    # An axis of few places would get ticks between them.
    ticks = {"values": list(range(1, modules + 1))} if modules <= 12 else {}
    place = number(
        "place",
        title=f"place by {content.score.name}",
        scale={"domain": [0, modules + 1], "nice": False},
        axis={"grid": False, **ticks},
    )
    low, high = BORDERLINE
    band = {"y": number("low", **share), "y2": {"field": "high"}}
    layers = [layer(band, {"low": low, "high": high}, type="rect", color=palette.BAND)]
    if content.first_places_full:
        end = {"place": len(content.full_lines) + 0.5}
        layers.append(layer({"x": number("place")}, end, **LIMIT_RULE))
    in_full, other = "trained in full", "not in full"
    encoding = {
        "x": place,
        "y": number("chosen", **share),
        "fill": category("train", {in_full: palette.FULL, other: palette.REST}, title=None),
        "shape": category("train", {in_full: "diamond", other: "circle"}, title=None),
        **TOOLTIP,
    }
    point: Spec = {"type": "point", "filled": True, "opacity": 1, "size": 90}
    layers.append(layer(encoding, **point, stroke=palette.HALO, strokeWidth=0.8))
    borderline = plan.stability.borderline_modules or 0
    caption = (
        f"On average {reselection(plan)}; {count(borderline, 'module')} "
        f"{'lies' if borderline == 1 else 'lie'} in the doubtful band between 10 % and 90 %. This "
        "is an upper bound: the resamples draw from the same probes, and new probes agree less."
    )
    return Chart(
        name="stability",
        title="Selection by resamples of the probes",
        subtitle="an upper bound: new probes agree less",
        caption=caption,
        description="A point per module: its place, and the share of resamples in which it is "
        f"selected. A band marks 10 % to 90 %. {_TABLE}",
        spec={"height": 240, "layer": layers},
        columns=columns(
            "id place chosen train",
            (
                (at, line.row.rank, line.chosen, in_full if line.full else other)
                for at, line in known
            ),
        ),
    )


def cumulative_chart(content: Content, unit: Unit) -> Chart:
    """Share of all positive scores in the best modules, over their share of the model."""
    found = content.cumulative[unit]
    x = number("taken", **SHARE_SCALE, title=f"share of {unit} in full")
    y = number("held", **SHARE_SCALE, title="share of positive scores")
    at: Spec = {"x": x, "y": y}
    data: dict[str, tuple[float, ...]] = {"taken": found.taken, "held": found.held}
    layers: list[Spec] = []
    if found.low:
        data |= {"low": found.low, "high": found.high}
        band = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
        layers.append(layer(band, type="area", color=palette.SPREAD, opacity=1))
    plan = {"taken": found.plan_taken, "held": found.plan_held}
    on_left = found.plan_taken < 0.75  # words stay on the chart
    beside = {"align": "left", "dx": 6} if on_left else {"align": "right", "dx": -6}
    ends = ({"taken": 0, "held": 0}, {"taken": 1, "held": 1})
    chance: Spec = {"type": "text", "align": "right", "baseline": "top", "dx": -4, "dy": 6,
                    "text": "random choice", "color": palette.MUTED}  # fmt: skip
    own: Spec = {"type": "text", "baseline": "bottom", **beside, "dy": -4, "text": "this plan"}
    layers += [
        layer(at, *ends, type="line", color=palette.MUTED, strokeDash=[3, 4], strokeWidth=1.5),
        layer(at, {"taken": 1, "held": 0.8}, **chance),
        layer(at, type="line", color=palette.FULL, strokeWidth=2.5),
        layer({"x": x}, plan, **LIMIT_RULE),
        layer(at, plan, **{**FULL_SIGN, "size": 110}),
        layer({"x": x, "y": ZERO}, plan, **own, color=palette.MARK),
    ]
    return Chart(
        name=f"cumulative-{unit}",
        title=f"Cumulative scores by share of {unit}",
        subtitle="selecting the best of noisy scores biases it upwards",
        description=f"A curve over the share of {unit} trained in full, the best first: their "
        "share of the sum of positive scores. A diagonal stands for a random choice, a diamond "
        "for this plan.",
        spec={"height": 260, "layer": layers},
        columns=data,
    )


def memory_chart(content: Content) -> Chart:
    """Memory by use, a bar for the plan and for each alternative."""
    totals = {name: plan.memory.total_bytes for name, plan in content.ways.items()}
    largest = max(totals.values())
    unit = memory(largest).split()[-1]
    size = _BYTES[unit]
    uses = dict(zip(USES, palette.SERIES, strict=True))
    bars = {
        "x": number("size", title=unit, stack="zero", axis={"tickCount": 5}),
        "color": category("use", uses, title=None, legend={"symbolType": "square"}),
        "order": number("order"),
    }
    sums = {
        "x": number("size", scale={"domainMax": 1.25 * largest / size, "nice": False}),
        "text": category("text"),
    }
    texts = [
        {"way": name, "size": total / size, "text": memory(total)} for name, total in totals.items()
    ]
    layers = [
        layer(bars, type="bar", height={"band": 0.6}, stroke=palette.HALO, strokeWidth=1),
        layer(sums, *texts, type="text", color=palette.INK, align="left", dx=6),
    ]
    y = category("way", sort=list(totals), title=None, axis=PLAIN_AXIS)
    return Chart(
        name="memory",
        title="Memory to train",
        subtitle="estimate, by use",
        caption=f"Training the plan takes about {memory(totals['this plan'])}: "
        f"{memory_settings(content.plan.memory)}. Activations are an estimate; allocators take "
        "more. Everything in full means every candidate, run with PEFT like the plan.",
        description="Stacked bars of training memory by use for three ways to train; the table "
        "below holds the numbers.",
        spec={"height": 46 * len(totals), "encoding": {"y": y}, "layer": layers},
        columns=columns(
            "way use size order",
            (
                (name, use, part(plan.memory) / size, order)
                for name, plan in content.ways.items()
                for order, (use, part) in enumerate(USES.items())
            ),
        ),
    )
