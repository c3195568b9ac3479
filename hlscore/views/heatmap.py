"""Layer-by-kind heat map in the terminal; readable without colour too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from hlscore.views.wording import count, shortened


class Placed(Protocol):
    """A module with its place in the model; plan modules, report rows and candidates are such."""

    @property
    def module(self) -> str:
        """Full name."""

    @property
    def layer(self) -> int | None:
        """Index of the decoder block."""

    @property
    def kind(self) -> str:
        """Last part of the name."""

    @property
    def block(self) -> str:
        """Path between the decoder block and the kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What the map shows of one module.

    Attributes:
        at: The module.
        score: What is shaded; `None` where it cannot be had.
        marked: Whether it is trained in full.
    """

    at: Placed
    score: float | None
    marked: bool = False


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
_MOST_KINDS = 40


def print_heat_map(console: Console, cells: Sequence[Cell], *, score: str) -> None:
    """Print the map with its legend after an empty line; nothing where no module has a layer."""
    shades = ASCII if console.options.ascii_only else UNICODE
    lines = heat_map(cells, width=console.width, shades=shades)
    if not lines:
        return
    console.print()
    for line in lines:
        console.print(line)
    marked = f"  {shades.chosen} trained in full" if any(cell.marked for cell in cells) else ""
    rising = f"{' '.join(shades.levels[1:])} rising {score}"
    console.print(Text(f"{shades.levels[0]} no signal  {rising}{marked}", style="dim"))


def heat_map(cells: Sequence[Cell], *, width: int, shades: Shades = UNICODE) -> list[Text]:
    """Draw scores: one line per kind of module, one cell per layer.

    The shade follows the square root of the score, from zero (or less) to the largest; a cell
    with the mark (◆) is trained in full.

    Args:
        width: Characters that a line may take.

    Returns:
        Lines of text, the layer ruler after the kinds, and last what has no room. Empty when no
        module lies in a numbered layer.
    """
    placed = [(cell.at.layer, cell) for cell in cells if cell.at.layer is not None]
    if not placed:
        return []
    labels = kind_labels(cell.at for _, cell in placed)
    kinds = list(dict.fromkeys(labels[cell.at.module] for cell in _by_place(placed)))
    layers = sorted({layer for layer, _ in placed})
    margin = min(max(map(cell_len, kinds)), width // 3) + 2
    wide = _WIDE if margin + _WIDE * len(layers) <= width else 1
    shown = layers[: max(1, (width - margin) // wide)]
    largest = max(cell.score or 0.0 for _, cell in placed)
    at = {(labels[cell.at.module], layer): cell for layer, cell in placed}
    lines = []
    for kind in kinds[:_MOST_KINDS]:
        label = shortened(kind, margin - 2)
        space = " " * (margin - cell_len(label))
        line = Text(f"{label}{space}", no_wrap=True, overflow="crop")
        for layer in shown:
            line.append_text(_drawn(at.get((kind, layer)), largest, wide, shades))
        lines.append(line)
    lines.append(_ruler(shown, margin, wide, width))
    missing = ((len(kinds) - _MOST_KINDS, "more kind"), (len(layers) - len(shown), "more layer"))
    left = [count(number, noun) for number, noun in missing if number > 0]
    if left:
        lines.append(Text(f"... {' and '.join(left)}", style="dim"))
    return lines


def kind_labels(modules: Iterable[Placed]) -> dict[str, str]:
    """Label each module by its kind, with the block before it where kinds would collide."""
    found = list(modules)
    places: dict[tuple[int | None, str], set[str]] = {}
    for item in found:
        places.setdefault((item.layer, item.kind), set()).add(item.block)
    colliding = {kind for (_, kind), blocks in places.items() if len(blocks) > 1}
    return {
        item.module: f"{item.block}.{item.kind}"
        if item.kind in colliding and item.block
        else item.kind
        for item in found
    }


def _by_place(placed: Sequence[tuple[int, Cell]]) -> list[Cell]:
    return sorted((cell for _, cell in placed), key=lambda cell: (cell.at.block, cell.at.kind))


def _drawn(cell: Cell | None, largest: float, width: int, shades: Shades) -> Text:
    if cell is None:
        return Text(" " * width)
    level = 0
    if cell.score is not None and cell.score > 0 and largest > 0:
        level = 1 + round((len(shades.levels) - 2) * (cell.score / largest) ** 0.5)
    shade = shades.levels[level]
    if cell.marked:
        return Text((shade if width > 1 else "") + shades.chosen, style=f"bold {_STYLES[level]}")
    return Text(shade * width, style=_STYLES[level])


def _ruler(layers: Sequence[int], margin: int, cell: int, width: int) -> Text:
    """Numbers under every fifth of the layers that are shown, where there is room for them."""
    line = "layer"
    for place, layer in enumerate(layers):
        at, number = margin + place * cell, str(layer)
        if place % 5 == 0 and len(line) < at <= width - len(number):
            line = f"{line:<{at}}{number}"
    return Text(line, style="dim", no_wrap=True)
