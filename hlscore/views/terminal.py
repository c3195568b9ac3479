"""What everything is printed on and with: the console, tables, JSON and commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hlscore.wording import visible

_WIDEST = 10_000


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

    def labelled(
        self,
        lines: Mapping[str, str] | Iterable[tuple[str, str]],
        width: int = 8,
        style: str = "bold",
    ) -> None:
        """Print texts behind labels that take `width` columns; empty texts are left out."""
        for label, text in lines.items() if isinstance(lines, Mapping) else lines:
            if text:
                indented = text.replace("\n", f"\n{' ' * width}")
                self.print(Text.assemble((f"{label:<{width}}", style), indented))

    def notes(self, notes: Iterable[str], label: str = "note") -> None:
        """Print remarks for the reader, a line each."""
        for note in notes:
            self.print(Text.assemble((f"{label}: ", "yellow"), visible(note)))

    def next_steps(self, *commands: tuple[str, str]) -> None:
        """Print commands to run next, each with its purpose, which may be empty."""
        self.print()
        self.print(Text("next", style="bold"))
        for command, why in commands:
            if why:
                self.print(Text.assemble("  ", (f"# {why}", "dim")))
            self.print(Text.assemble("  ", (visible(command), "cyan")))


def print_json(value: object) -> None:
    """Print a value as JSON on one line; dataclasses become objects, paths texts."""
    print(json.dumps(value, default=_plain))


def _plain(value: Any) -> object:
    if is_dataclass(value):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def picked(item: object, *names: str) -> dict[str, Any]:
    """Some attributes of an object, by name."""
    return {name: getattr(item, name) for name in names}


def plain_table(*headings: str, texts: Collection[str] = ()) -> Table:
    """A table without lines: the first column and `texts` fold at the left, numbers never fold."""
    table = Table(box=None, pad_edge=False, collapse_padding=not texts, header_style="bold")
    for place, heading in enumerate(headings):
        is_text = not place or heading in texts
        justify = "left" if is_text else "right"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=not is_text)  # type: ignore[arg-type]
    return table


def command(*words: object) -> str:
    """A command line of hlscore, quoted for a shell."""
    return shlex.join(["hlscore", *map(str, words)])
