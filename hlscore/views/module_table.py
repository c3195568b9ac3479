"""Tables with a line per module; rich's own take seconds for thousands of lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from hlscore.views.wording import count

_NARROWEST_NAME = 20


class ModuleTable:
    """A table of modules: place, name, numbers, short texts.

    Args:
        numbers: Headings of columns that are set to the right.
        texts: Headings of the columns after them.
    """

    def __init__(self, numbers: Sequence[str], texts: Sequence[str] = ()) -> None:
        self._rows: list[tuple[Sequence[str], str, str]] = []
        self._left = len(texts)
        self._rest = 0
        self.add_row("#", "module", *numbers, *texts, style="bold")

    def add_row(self, *cells: str, style: str | None = None, remark: str = "") -> None:
        """Add a module."""
        self._rows.append((cells, style or "", remark))

    def leave_out(self, number: int) -> None:
        """Say how many modules have no line, if any."""
        self._rest = max(0, number)

    def print(self, console: Console) -> None:
        """Print the table, beyond the width of the console where its columns need that."""
        console.print(self._drawn(console.width), end="", soft_wrap=True)

    def _drawn(self, width: int) -> Text:
        # Names fold to the width, nothing else does.
        columns = zip(*(cells for cells, _, _ in self._rows), strict=True)
        places, longest, *others = (max(map(cell_len, column)) for column in columns)
        room = width - places - sum(others) - len(others) - 1
        widths = [places, min(longest, max(room, _NARROWEST_NAME)), *others]
        table, indent = Text(), " " * (places + 1)
        for cells, style, remark in self._rows:
            name, *rest = folded(cells[1], widths[1])
            line = self._line([cells[0], name, *cells[2:]], widths)
            below = [*rest, *([f"  {remark}"] if remark else [])]
            table.append("".join([line, "\n", *(f"{indent}{text}\n" for text in below)]), style)
        if self._rest:
            table.append(f"{indent}... {count(self._rest, 'more module')}\n", "dim")
        return table

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        to_left = {1, *range(len(cells) - self._left, len(cells))}
        return " ".join(
            cell + space if place in to_left else space + cell
            for place, (cell, space) in enumerate(
                (cell, " " * (width - cell_len(cell)))
                for cell, width in zip(cells, widths, strict=True)
            )
        ).rstrip()


def folded(name: str, width: int) -> list[str]:
    """Cut a name into lines, before its dots where that is possible."""
    lines: list[str] = []
    for part in re.split(r"(?=\.)", name):
        if lines and cell_len(lines[-1] + part) <= width:
            lines[-1] += part
        else:
            lines += chop_cells(part, width) or [part]
    return lines
