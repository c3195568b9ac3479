"""What a report can be written as; the suffix of the file decides."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path

from hlscore.errors import HlscoreError, UsageError
from hlscore.pages.board import Board
from hlscore.pages.bundle import Bundle
from hlscore.pages.painter import Painter

FORMATS = (".html", ".png", ".svg", ".md")


def check_format(target: Path) -> str:
    """Refuse a file that cannot be written, before anything is read."""
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(
            f"'{target}' names no format of a report.",
            hint=f"End it in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.",
        )
    if suffix != ".md" and find_spec("vl_convert") is None:
        raise HlscoreError(
            f"A report as {suffix} needs vl-convert-python, which draws the charts.",
            hint="Run pip install 'hlscore[report]', or write .md, which needs nothing more.",
        )
    return suffix


def start(suffix: str) -> AbstractContextManager[Bundle | Painter | None]:
    """Begin with what takes longest, while the files are read.

    Returns:
        The scripts of a page, or the drawing of an image, in the making; nothing for Markdown.
    """
    if suffix == ".html":
        return Bundle()
    return nullcontext() if suffix == ".md" else Painter(".png" if suffix == ".png" else ".svg")


def render(board: Board, started: Bundle | Painter | None) -> bytes:
    """Write a report.

    Returns:
        The content of the file; equal inputs give equal bytes.
    """
    if isinstance(started, Bundle):
        from hlscore.pages.page import html_text

        return html_text(board, started.text()).encode()
    if isinstance(started, Painter):
        from hlscore.pages.poster import poster

        return started.draw(poster(board))
    from hlscore.pages.markdown import markdown_text

    return markdown_text(board).encode()
