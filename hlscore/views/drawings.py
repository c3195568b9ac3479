"""Scores drawn with characters, readable without colour too: a heat map and a row of blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.text import Text

from hlscore.artifacts.plan import PlanModule
from hlscore.records import ModuleRow
from hlscore.views.terminal import Terminal
from hlscore.wording import count, shortened

_STYLES = ("bright_black", "blue", "cyan", "yellow", "red")
_MOST_KINDS = 40
_BLOCKS = "·▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "._,-=+*%#"


def print_heat_map(
    console: Terminal, modules: Sequence[PlanModule | ModuleRow], score: str, field: str = ""
) -> None:
    """Print scores by module: one line per kind, one cell per layer, modules in full marked.

    The shade follows the square root of the score. Kinds and layers without room are counted.

    Args:
        field: Of a module that holds the score, if it is not called like it.
    """
    placed = [(item.layer, item) for item in modules if item.layer is not None]
    scores = {item.module: getattr(item, field or score) for item in modules}
    full = {item.module for item in modules if getattr(item, "mode", "") == "full"}
    if not placed:
        return
    width = console.width
    shades, sign = (".-+*#", "F") if console.options.ascii_only else ("·░▒▓█", "◆")
    labels = kind_labels(item for _, item in placed)
    kinds = list(dict.fromkeys(labels.values()))
    layers = sorted({layer for layer, _ in placed})
    margin = min(max(map(cell_len, kinds)), width // 3) + 2
    cell = 2 if margin + 2 * len(layers) <= width else 1
    shown = layers[: max(1, (width - margin) // cell)]
    largest = max(scores[item.module] or 0.0 for _, item in placed)
    at = {(labels[item.module], layer): item.module for layer, item in placed}
    console.print()
    for kind in kinds[:_MOST_KINDS]:
        label = shortened(kind, margin - 2)
        line = Text(label + " " * (margin - cell_len(label)), no_wrap=True, overflow="crop")
        for layer in shown:
            module = at.get((kind, layer))
            if module is None:
                line.append(" " * cell)
                continue
            level = shade_of(scores[module], largest, len(shades) - 1)
            marked = shades[level] * (cell - 1) + sign if module in full else shades[level] * cell
            line.append(marked, f"bold {_STYLES[level]}" if module in full else _STYLES[level])
        console.print(line)
    ruler = "layer"
    for place, layer in enumerate(shown):
        start, number = margin + place * cell, str(layer)
        if place % 5 == 0 and len(ruler) < start <= width - len(number):
            ruler = f"{ruler:<{start}}{number}"
    console.print(Text(ruler, style="dim", no_wrap=True))
    hidden = {"more kind": len(kinds) - _MOST_KINDS, "more layer": len(layers) - len(shown)}
    if left := [count(number, noun) for noun, number in hidden.items() if number > 0]:
        console.dim(f"... {' and '.join(left)}")
    signed = f"  {sign} trained in full" if any(item.module in full for _, item in placed) else ""
    console.dim(f"{shades[0]} no signal  {' '.join(shades[1:])} rising {score}{signed}")


def shade_of(score: float | None, largest: float, shades: int) -> int:
    """Shade of a score: 0 for none or none above zero, then 1 to `shades` by its square root."""
    if score is None or score <= 0 or largest <= 0:
        return 0
    return 1 + round((shades - 1) * math.sqrt(score / largest))


def kind_labels(modules: Iterable[PlanModule | ModuleRow]) -> dict[str, str]:
    """Labels by module, in the order of blocks and kinds: the kind, after its block if needed."""
    found = sorted(modules, key=lambda item: (item.block, item.kind))
    places: dict[tuple[int | None, str], set[str]] = {}
    for item in found:
        places.setdefault((item.layer, item.kind), set()).add(item.block)
    colliding = {kind for (_, kind), blocks in places.items() if len(blocks) > 1}
    labels = {}
    for item in found:
        collides = item.kind in colliding and item.block
        labels[item.module] = f"{item.block}.{item.kind}" if collides else item.kind
    return labels


def sparkline(values: Sequence[float], *, ascii_only: bool) -> str:
    """A curve as a row of characters from zero to the largest value; the first is for zero."""
    levels = _ASCII_BLOCKS if ascii_only else _BLOCKS
    largest = max(values, default=0.0)
    return "".join(
        levels[0] if value <= 0 else levels[1 + round((len(levels) - 2) * (value / largest))]
        for value in values
    )
