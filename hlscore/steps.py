"""What the flow tells a progress display about its long steps."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What the flow tells a progress display."""

    def start(self, what: str, total: int, unit: str) -> None:
        """Begin a step of `total` units."""

    def advance(self, amount: int) -> None:
        """Report units done."""


class Silent:
    """A progress display that shows nothing."""

    def start(self, what: str, total: int, unit: str) -> None:
        """Ignore the step."""

    def advance(self, amount: int) -> None:
        """Ignore the units."""
