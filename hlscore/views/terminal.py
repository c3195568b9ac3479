"""What everything is printed on and with: the console, tables, JSON and commands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hlscore.wording import count, visible

_WIDEST = 10_000
_NARROWEST_NAME = 20


class ModuleLine(NamedTuple):
    """A module in a table: its place, its name and further cells; the remark stands below."""

    cells: Sequence[str]
    style: str = ""
    remark: str = ""


class Terminal(Console):
    """Standard output, taking every text literally: names come from untrusted files.

    Texts are not cut into lines: the terminal does that, and a pipe gets whole ones.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)

    def dim(self, text: str) -> None:
        """Print a remark of little weight."""
        self.print(Text(text, style="dim"))

    def folded(self, table: Table) -> None:
        """Print a table whose texts fold to the width of the console."""
        self.print(table, soft_wrap=False)

    def whole(self, table: Table) -> None:
        """Print a table beyond the width of the console where its cells need that: none is cut."""
        room = self.options.update(max_width=_WIDEST)
        table.width = Measurement.get(self, room, table).maximum
        self.print(table, soft_wrap=False, crop=False)

    def modules(
        self, headings: Sequence[str], lines: Iterable[ModuleLine], *, of: int, texts: int = 0
    ) -> None:
        """Print a line for each module, and how many of all are left out.

        Names fold to the width of the console, nothing else does. A table of rich takes seconds
        for thousands of lines.

        Args:
            headings: Of the columns after place and name.
            of: Number of all modules.
            texts: How many of the last columns hold texts and stand at the left.
        """
        lines = [ModuleLine(("#", "module", *headings), "bold"), *lines]
        columns = zip(*(line.cells for line in lines), strict=True)
        place, longest, *others = (max(map(cell_len, column)) for column in columns)
        room = self.width - place - sum(others) - len(others) - 1
        widths = [place, min(longest, max(room, _NARROWEST_NAME)), *others]
        at_left = {1, *range(len(widths) - texts, len(widths))}
        table, indent = Text(), " " * (place + 1)
        for (number, module, *cells), style, remark in lines:
            name, *below = folded(module, widths[1])
            padded = []
            for at, (cell, width) in enumerate(zip((number, name, *cells), widths, strict=True)):
                space = " " * (width - cell_len(cell))
                padded.append(cell + space if at in at_left else space + cell)
            below += [f"  {remark}"] if remark else []
            parts = [" ".join(padded).rstrip(), *(f"{indent}{text}" for text in below), ""]
            table.append("\n".join(parts), style)
        hidden = of + 1 - len(lines)
        if hidden:
            table.append(f"{indent}... {count(hidden, 'more module')}\n", "dim")
        self.print(table, end="")

    def labelled(
        self, lines: Iterable[tuple[str, str]], width: int = 8, style: str = "bold"
    ) -> None:
        """Print texts behind labels that take `width` columns; empty texts are left out."""
        for label, text in lines:
            if text:
                indented = text.replace("\n", f"\n{' ' * width}")
                self.print(Text.assemble((f"{label:<{width}}", style), indented))

    def notes(self, notes: Iterable[str], label: str = "note") -> None:
        """Print remarks for the reader, a line each."""
        for note in notes:
            self.print(Text.assemble((f"{label}: ", "yellow"), visible(note)))

    def next_steps(self, *commands: tuple[str, str]) -> None:
        """Print commands to run next, each with its purpose, which may be empty."""
        self.print(Text("\nnext", style="bold"))
        for command, why in commands:
            if why:
                self.print(Text.assemble("  ", (f"# {why}", "dim")))
            self.print(Text.assemble("  ", (visible(command), "cyan")))


def folded(name: str, width: int) -> list[str]:
    """Cut a name into lines, before its dots where that is possible."""
    lines: list[str] = []
    for part in re.split(r"(?=\.)", name):
        if lines and cell_len(lines[-1] + part) <= width:
            lines[-1] += part
        else:
            lines += chop_cells(part, width) or [part]
    return lines


def plain_table(*headings: str, texts: Collection[str] = ()) -> Table:
    """A table without lines: the first column and `texts` fold at the left, numbers never fold."""
    table = Table(box=None, pad_edge=False, collapse_padding=not texts, header_style="bold")
    for place, heading in enumerate(headings):
        if not place or heading in texts:
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    return table


def print_json(value: object) -> None:
    """Print a value as JSON on one line; dataclasses become objects, paths texts."""

    def plain(value: Any) -> object:
        if is_dataclass(value):
            return {item.name: getattr(value, item.name) for item in fields(value)}
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"no JSON for {type(value).__name__}")

    print(json.dumps(value, default=plain))


def picked(item: object, *names: str) -> dict[str, Any]:
    """Some attributes of an object, by name."""
    return {name: getattr(item, name) for name in names}


def command(*words: object) -> str:
    """A command line of hlscore, quoted for a shell."""
    return shlex.join(["hlscore", *map(str, words)])
