"""Tables with a line per module; rich's own take seconds for thousands of lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len, chop_cells
from rich.text import Text

from hlscore.views.terminal import Terminal
from hlscore.wording import count

_NARROWEST_NAME = 20


class ModuleTable:
    """A table of modules: place, name, numbers at the right, short texts at the left."""

    def __init__(self, numbers: Sequence[str], texts: Sequence[str] = ()) -> None:
        self._rows: list[tuple[Sequence[str], str, str]] = []
        self._texts = len(texts)
        self.add_row("#", "module", *numbers, *texts, style="bold")

    def add_row(self, *cells: str, style: str = "", remark: str = "") -> None:
        """Add a module; its remark stands below it."""
        self._rows.append((cells, style, remark))

    def print(self, console: Terminal, *, hidden: int = 0) -> None:
        """Print the table and how many modules it leaves out.

        Names fold to the width of the console, nothing else does.
        """
        columns = zip(*(cells for cells, _, _ in self._rows), strict=True)
        places, longest, *others = (max(map(cell_len, column)) for column in columns)
        room = console.width - places - sum(others) - len(others) - 1
        widths = [places, min(longest, max(room, _NARROWEST_NAME)), *others]
        at_left = {1, *range(len(widths) - self._texts, len(widths))}
        table, indent = Text(), " " * (places + 1)
        for cells, style, remark in self._rows:
            name, *below = folded(cells[1], widths[1])
            padded = []
            for place, (cell, width) in enumerate(
                zip((cells[0], name, *cells[2:]), widths, strict=True)
            ):
                space = " " * (width - cell_len(cell))
                padded.append(cell + space if place in at_left else space + cell)
            below += [f"  {remark}"] if remark else []
            lines = [" ".join(padded).rstrip(), *(f"{indent}{text}" for text in below), ""]
            table.append("\n".join(lines), style)
        if hidden > 0:
            table.append(f"{indent}... {count(hidden, 'more module')}\n", "dim")
        console.print(table, end="")


def folded(name: str, width: int) -> list[str]:
    """Cut a name into lines, before its dots where that is possible."""
    lines: list[str] = []
    for part in re.split(r"(?=\.)", name):
        if lines and cell_len(lines[-1] + part) <= width:
            lines[-1] += part
        else:
            lines += chop_cells(part, width) or [part]
    return lines
