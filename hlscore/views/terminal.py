"""The console that everything is printed on, and what every result ends with."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hlscore.views.wording import visible

_WIDEST = 10_000


def terminal() -> Console:
    """Standard output, taking every text literally: names come from untrusted files."""
    return Console(markup=False, emoji=False, highlight=False)


def print_table(console: Console, table: Table) -> None:
    """Print a table beyond the width of the console where its cells need that: none is cut."""
    room = console.options.update(max_width=_WIDEST)
    table.width = Measurement.get(console, room, table).maximum
    console.print(table, crop=False)


def print_notes(console: Console, notes: Iterable[str]) -> None:
    """Print remarks for the reader, a line each."""
    for note in notes:
        console.print(Text.assemble(("note: ", "yellow"), visible(note)), soft_wrap=True)


def print_next(console: Console, *commands: tuple[str, str]) -> None:
    """Print commands to go on with."""
    console.print()
    console.print(Text("next", style="bold"))
    for command, why in commands:
        console.print(Text.assemble("  ", (f"# {why}", "dim")), soft_wrap=True)
        console.print(Text.assemble("  ", (visible(command), "cyan")), soft_wrap=True)
