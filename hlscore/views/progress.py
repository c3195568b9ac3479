"""Progress on standard error: bars with time left on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from hlscore import steps
from hlscore.errors import HlscoreError
from hlscore.processes import started_as
from hlscore.wording import duration, short


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Units per second, once they are known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{short(speed)} {task.fields['unit']}/s", "cyan")


class BarProgress:
    """Shows steps as bars."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def start(self, what: str, total: int, unit: str) -> None:
        """Begin a step of `total` units."""
        self._task = self._bars.add_task(what, total=total, unit=unit)

    def advance(self, amount: int) -> None:
        """Report units done."""
        self._bars.advance(self._task, amount)


class LineProgress:
    """Writes a line of progress now and then, for logs: the first after `every_seconds`."""

    def __init__(self, console: Console, *, every_seconds: float = 60.0) -> None:
        self._console, self._every = console, every_seconds
        self._last = time.monotonic()
        self.start("", 0, "")

    def start(self, what: str, total: int, unit: str) -> None:
        """Begin a step of `total` units."""
        self._what, self._unit, self._total, self._done = what, unit, total, 0
        self._began = time.monotonic()

    def advance(self, amount: int) -> None:
        """Report units done."""
        self._done += amount
        now, done, total = time.monotonic(), self._done, self._total
        if now - self._last < self._every or not 0 < done < total:
            return
        self._last = now
        left = duration((now - self._began) * (total - done) / done)
        share = f"{done:,} of {total:,} {self._unit}, {100 * done // total} %"
        self._console.print(f"{self._what}: {share}, about {left} left", soft_wrap=True)


@contextmanager
def terminal_progress() -> Iterator[steps.Progress]:
    """Bars that vanish when the work is done; outside a terminal a line every minute.

    Of several processes only the main one prints.
    """
    console = Console(stderr=True)
    if not started_as().is_main:
        yield steps.Silent()
        return
    if not console.is_terminal:
        yield LineProgress(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield BarProgress(bars)


def warn(text: str) -> None:
    """Print a warning on standard error, once for all processes; nothing where it is empty."""
    if text and started_as().is_main:
        console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        console.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)


@contextmanager
def refused_unless(dry_run: bool) -> Iterator[None]:
    """Errors of a block as they are; in a dry run a warning that the run itself would end so."""
    try:
        yield
    except HlscoreError as error:
        if not dry_run:
            raise
        warn(f"The run itself would be refused: {error.message} {error.hint}")


@contextmanager
def status(what: str) -> Iterator[None]:
    """A spinner during something of unknown length; nothing outside a terminal."""
    console = Console(stderr=True)
    if not (console.is_terminal and started_as().is_main):
        yield
        return
    with console.status(what):
        yield
