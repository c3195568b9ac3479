"""What a report can be written as; the suffix of the file decides."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path

from hlscore.errors import UsageError
from hlscore.pages.board import Board
from hlscore.pages.bundle import Bundle

FORMATS = (".html", ".png", ".svg", ".md")


def check_format(target: Path) -> str:
    """Refuse a file that cannot be written, before anything is read.

    Args:
        target: The file to write.

    Returns:
        Its suffix, in lower case.

    Raises:
        UsageError: The suffix is unknown, or the library that draws charts is missing.
    """
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(
            f"'{target}' names no format of a report.",
            hint=f"End it in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.",
        )
    if suffix != ".md" and find_spec("vl_convert") is None:
        raise UsageError(
            f"A report as {suffix} needs vl-convert-python, which draws the charts.",
            hint="Run pip install 'hlscore[report]', or write .md, which needs nothing more.",
        )
    return suffix


def start_bundle(suffix: str) -> AbstractContextManager[Bundle | None]:
    """Begin with what takes longest, while the files are read.

    Args:
        suffix: Of the file to write.

    Returns:
        The scripts of a page in the making; nothing for other formats.
    """
    return Bundle() if suffix == ".html" else nullcontext()


def render(board: Board, suffix: str, bundle: Bundle | None) -> bytes:
    """Write a report.

    Args:
        board: Content and charts.
        suffix: One of `FORMATS`.
        bundle: What `start_bundle` gave.

    Returns:
        The content of the file; equal inputs give equal bytes.
    """
    if suffix == ".md":
        from hlscore.pages.markdown import markdown_text

        return markdown_text(board).encode()
    if bundle is not None:
        from hlscore.pages.page import html_text

        return html_text(board, bundle.text()).encode()
    from hlscore.pages.poster import png_bytes, svg_text

    return png_bytes(board) if suffix == ".png" else svg_text(board).encode()
