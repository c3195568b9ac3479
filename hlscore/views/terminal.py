"""The console that everything is printed on, and what every result ends with."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from hlscore.views.wording import visible


def terminal() -> Console:
    """Standard output, taking every text literally: names come from untrusted files."""
    return Console(markup=False, emoji=False, highlight=False)


def print_notes(console: Console, notes: Iterable[str]) -> None:
    """Print remarks for the reader, a line each.

    Args:
        console: Where to print.
        notes: The remarks.
    """
    for note in notes:
        console.print(Text.assemble(("note: ", "yellow"), visible(note)), soft_wrap=True)


def print_next(console: Console, *commands: tuple[str, str]) -> None:
    """Print commands to go on with.

    Args:
        console: Where to print.
        commands: Each with what it is for.
    """
    console.print()
    console.print(Text("next", style="bold"))
    for command, why in commands:
        console.print(Text.assemble("  ", (f"# {why}", "dim")), soft_wrap=True)
        console.print(Text.assemble("  ", (command, "cyan")), soft_wrap=True)
