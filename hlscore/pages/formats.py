"""What a report can be written as; the suffix of the file decides."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hlscore.errors import HlscoreError, UsageError
from hlscore.pages.content import Content

FORMATS = (".html", ".png", ".svg", ".md")


def check_format(target: Path) -> str:
    """Refuse a file that cannot be written, before anything is read.

    Returns:
        Its suffix in lower case.
    """
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(
            f"'{target}' has an unknown suffix.",
            hint=f"Use {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.",
        )
    if suffix != ".md" and find_spec("vl_convert") is None:
        raise HlscoreError(
            f"A report as {suffix} needs vl-convert-python, which draws the charts.",
            hint="Run pip install 'hlscore[report]', or write .md, which needs no extra.",
        )
    return suffix


def render(content: Content, suffix: str) -> bytes:
    """The bytes of a report file; equal inputs give equal bytes."""
    from hlscore.pages.page import html_text, markdown_text
    from hlscore.pages.poster import poster
    from hlscore.pages.vega import chart_script, paint

    if suffix == ".md":
        return markdown_text(content).encode()
    if suffix == ".html":
        return html_text(content, chart_script()).encode()
    return paint(poster(content), suffix)
