"""The report as Markdown, for a pull request or an issue: no charts, no library for them."""

from __future__ import annotations

from hlscore.pages import sentences
from hlscore.pages.content import Content
from hlscore.pages.escaping import name, prose
from hlscore.pages.formats import template
from hlscore.pages.module_charts import TOP
from hlscore.pages.table import COLUMNS, table_cells
from hlscore.views.wording import memory, percent, short

_MOST_SKIPPED = 20


def markdown_text(content: Content) -> str:
    """Write the report as GitHub's Markdown."""
    page = template(
        "report.md.jinja", prose=prose, name=name, memory=memory, percent=percent, short=short
    )
    return page.render(
        content=content,
        text=sentences,
        columns=COLUMNS,
        rows=[table_cells(line) for line in content.lines[:TOP]],
        hidden=len(content.lines) - TOP,
        skipped=content.skipped[:_MOST_SKIPPED],
        skipped_hidden=len(content.skipped) - _MOST_SKIPPED,
        shares=(0.05, 0.1, 0.2, 0.3, 0.5),
    )
