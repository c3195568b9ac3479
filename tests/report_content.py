"""Contents of report pages for tests, and an HTML page read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from reports import report

from hlscore.artifacts.plan import Plan
from hlscore.pages.content import Content, join
from hlscore.planning.make_plan import make_plan
from hlscore.records import ScoreReport
from hlscore.settings import PlanSettings

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a|b||c",
    "``tick`s",
    "quote\"'&amp;&lt;",
    "[link](javascript:alert(1))",
    "{{7*7}}{% raw %}",
    "@someone #1 www.evil.example https://evil.example a@b.example",
    "**bold** _it_ ~~gone~~ $x$",
    "<!-- comment",
    "- item",
    "1. item",
    "__proto__",
    "constructor",
    "hasOwnProperty",
    "datum.layer]'\"\\",
)


def planned(found: ScoreReport, **settings: object) -> Plan:
    """A plan for a report."""
    chosen = PlanSettings(**{"rank": found.run.rank, **settings})  # type: ignore[arg-type]
    return make_plan(found, chosen)


def joined(found: ScoreReport, **settings: object) -> Content:
    """A report joined with its plan."""
    return join(found, planned(found, **settings), planned_here=False)


def content(count: int = 20, *, resamples: int = 20, **settings: object) -> Content:
    """A made-up report of some modules joined with its plan."""
    return joined(report(count, resamples=resamples), **settings)


def with_rows(count: int, first: int = 0, **changes: Any) -> Content:
    """A made-up report whose candidates from a place on are changed, joined with its plan.

    `N` in a text is their place.
    """
    found, rows = report(count), []
    for at, row in enumerate(found.candidates):
        own = {
            name: value.replace("N", str(at)) if isinstance(value, str) else value
            for name, value in changes.items()
        }
        rows.append(replace(row, **own) if at >= first else row)
    return joined(replace(found, rows=(*rows, found.rows[-1])))


def hostile_report() -> ScoreReport:
    """A report whose names try to leave the page."""
    found = report(len(HOSTILE))
    named = tuple(
        replace(row, module=name, parameter=f"{name}.weight", kind=name, block="")
        for row, name in zip(found.candidates, HOSTILE, strict=True)
    )
    skipped = replace(found.rows[-1], module=f"skipped {HOSTILE[0]}", reason=HOSTILE[1])
    return replace(
        found,
        rows=(*named, skipped),
        model=replace(found.model, model=HOSTILE[0]),
        probes=replace(found.probes, source=HOSTILE[1], notes=(HOSTILE[0], "bell \x07 \u202e x")),
        run=replace(found.run, notes=(HOSTILE[7],), settings={"data": HOSTILE[0]}),
    )


class Page(HTMLParser):
    """A page read back: its text, cells of tables, scripts with their type, and opened tags."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}  # rows of cells by the id of the table
        self.scripts: list[tuple[str, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._table: list[list[str]] = []
        self._within = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag == "table":
            self._table = self.tables.setdefault(given.get("id") or "", [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")
            self._within = True
        elif tag == "script":
            self.scripts.append((given.get("type") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        self._within = self._within and tag != "table"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags and self.tags[-1][0] == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif self._within and self._table[-1]:
            self._table[-1][-1] += data.strip("\n")
