"""The report as Markdown, for a pull request or an issue: no charts, no library for them."""

from __future__ import annotations

import html
import re

from jinja2 import Environment, PackageLoader, StrictUndefined

from hlscore.pages import sentences
from hlscore.pages.content import Content
from hlscore.pages.module_charts import TOP
from hlscore.pages.table import COLUMNS, table_cells
from hlscore.views.wording import memory, percent, short

_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
_MOST_SKIPPED = 20


def markdown_text(content: Content) -> str:
    """Write the report as GitHub's Markdown."""
    environment = Environment(
        loader=PackageLoader("hlscore.pages"),
        autoescape=False,  # noqa: S701 - `prose` and `name` escape for Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "prose": prose, "name": name, "memory": memory, "percent": percent, "short": short,
    }  # fmt: skip
    return environment.get_template("report.md.jinja").render(
        content=content,
        text=sentences,
        columns=COLUMNS,
        rows=[table_cells(line) for line in content.lines[:TOP]],
        hidden=len(content.lines) - TOP,
        skipped=content.skipped[:_MOST_SKIPPED],
        skipped_hidden=len(content.skipped) - _MOST_SKIPPED,
        shares=(0.05, 0.1, 0.2, 0.3, 0.5),
    )


def prose(text: str) -> str:
    """A sentence in which nothing is taken for Markdown, HTML, a link or a mention."""
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"[\\`*_{}\[\]|~#!^$]|:(?=\S)", lambda found: f"&#{ord(found[0])};", escaped)
    escaped = re.sub(r"(?i)www\.", lambda found: f"{found[0][:3]}&#46;", escaped)
    # A comment parts the text in which GitHub looks for addresses and mentions.
    escaped = escaped.replace("@", "<!-- -->&#64;<!-- -->")
    # Numbered items, bullets and headings at the start of a line.
    escaped = re.sub(r"^(\d+)([.)])(?=\s)", lambda item: f"{item[1]}&#{ord(item[2])};", escaped)
    return re.sub(r"^[-+=](?=[-+=\s]|$)", lambda item: f"&#{ord(item[0])};", escaped)


def name(text: str) -> str:
    """A name as code that reads as the name, whatever it holds."""
    return f"`{text}`" if _PLAIN.fullmatch(text) else f"<code>{prose(text)}</code>"
