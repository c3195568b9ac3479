"""The console that everything is printed on."""

from __future__ import annotations

from rich.console import Console


def terminal() -> Console:
    """Standard output, taking every text literally: names come from untrusted files."""
    return Console(markup=False, emoji=False, highlight=False)
