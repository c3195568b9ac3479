"""Layer-by-kind heat map in the terminal; readable without colour too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from hlscore.planning.allocation import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Shades:
    """Characters of a heat map.

    Attributes:
        levels: From no signal to the largest score.
        chosen: Marks a module trained in full.
    """

    levels: str
    chosen: str


UNICODE = Shades(levels="·░▒▓█", chosen="◆")
ASCII = Shades(levels=".-+*#", chosen="F")
_STYLES = ("bright_black", "blue", "cyan", "yellow", "red")
_WIDE = 2


def heat_map(decisions: Sequence[Decision], *, width: int, shades: Shades = UNICODE) -> list[Text]:
    """Draw the scores of a plan: one line per kind of module, one cell per layer.

    The shade follows the square root of the score, from zero (or less) to the largest; a cell
    with the mark (◆) is trained in full.

    Args:
        decisions: Modules with score and mode.
        width: Characters that a line may take.
        shades: Characters to draw with.

    Returns:
        Lines of text, the layer ruler last. Empty when no module lies in a numbered layer.
    """
    placed = [item for item in decisions if item.row.layer is not None]
    if not placed:
        return []
    labels = kind_labels(placed)
    kinds = list(dict.fromkeys(labels[item.row.module] for item in _by_place(placed)))
    layers = sorted({item.row.layer for item in placed if item.row.layer is not None})
    margin = max(len(kind) for kind in kinds) + 2
    cell = _WIDE if margin + _WIDE * len(layers) <= width else 1
    largest = max((item.score or 0.0 for item in placed), default=0.0)
    cells = {(labels[item.row.module], item.row.layer): item for item in placed}
    lines = []
    for kind in kinds:
        line = Text(f"{kind:<{margin}}", no_wrap=True, overflow="crop")
        for layer in layers:
            line.append_text(_cell(cells.get((kind, layer)), largest, cell, shades))
        lines.append(line)
    lines.append(_ruler(layers, margin, cell))
    return lines


def kind_labels(decisions: Sequence[Decision]) -> dict[str, str]:
    """Label each module by its kind, with the block before it where kinds would collide."""
    places: dict[tuple[int | None, str], set[str]] = {}
    for item in decisions:
        places.setdefault((item.row.layer, item.row.kind), set()).add(item.row.block)
    colliding = {kind for (_, kind), blocks in places.items() if len(blocks) > 1}
    return {
        item.row.module: f"{item.row.block}.{item.row.kind}"
        if item.row.kind in colliding and item.row.block
        else item.row.kind
        for item in decisions
    }


def _by_place(decisions: Sequence[Decision]) -> list[Decision]:
    return sorted(decisions, key=lambda item: (item.row.block, item.row.kind))


def _cell(item: Decision | None, largest: float, width: int, shades: Shades) -> Text:
    if item is None:
        return Text(" " * width)
    level = 0
    if item.score is not None and item.score > 0 and largest > 0:
        level = 1 + round((len(shades.levels) - 2) * (item.score / largest) ** 0.5)
    shade = shades.levels[level]
    if item.mode == "full":
        return Text((shade if width > 1 else "") + shades.chosen, style=f"bold {_STYLES[level]}")
    return Text(shade * width, style=_STYLES[level])


def _ruler(layers: Sequence[int], margin: int, cell: int) -> Text:
    line = [" "] * (cell * len(layers) + 4)
    for place, layer in enumerate(layers):
        if layer % 5 == 0:
            line[place * cell : place * cell + len(str(layer))] = str(layer)
    return Text(f"{'layer':<{margin}}{''.join(line).rstrip()}", style="dim", no_wrap=True)
