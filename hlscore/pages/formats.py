"""What a report can be written as; the suffix of the file decides."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlscore.errors import HlscoreError, UsageError
from hlscore.pages.content import Content

if TYPE_CHECKING:
    from jinja2 import Template

VEGA_LITE_VERSION = "6.1"
FORMATS = (".html", ".png", ".svg", ".md")

_PNG_SCALE = 2


def check_format(target: Path) -> str:
    """Refuse a file that cannot be written, before anything is read."""
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(
            f"'{target}' has no suffix of a report.",
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
    if suffix in (".html", ".md"):
        from hlscore.pages.page import html_text, markdown_text

        text = markdown_text(content) if suffix == ".md" else html_text(content, chart_script())
        return text.encode()
    from hlscore.pages.poster import poster

    return paint(poster(content), suffix)


def paint(spec: dict[str, Any], suffix: str) -> bytes:
    """Draw a Vega-Lite specification as `.svg`, or as `.png` at two pixels per unit."""
    import vl_convert

    if suffix == ".svg":
        return str(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE_VERSION)).encode()
    image: bytes = vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE_VERSION, scale=_PNG_SCALE)
    return image


@cache
def chart_script() -> str:
    """Vega, Vega-Lite and Vega-Embed in one JavaScript, safe inside a `<script>`."""
    import vl_convert

    return inline(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE_VERSION))


def inline(script: str) -> str:
    """Escape a script so that no string in it ends the element that holds it."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script, flags=re.IGNORECASE)


def template(file: str, /, **filters: Callable[[Any], str]) -> Template:
    """A template of this package: HTML escapes by itself, Markdown by the filters that it calls."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hlscore.pages"),
        autoescape=file.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "sort_keys": False}
    return environment.get_template(file)
