"""The JavaScript that draws the charts of a page: Vega, Vega-Lite and Vega-Embed in one text."""

from __future__ import annotations

import re

from hlscore.pages.charts import VEGA_LITE_VERSION
from hlscore.pages.side_process import SideProcess

_SNIPPET = "window.vegaEmbed = vegaEmbed;"
_CODE = (
    "import sys, vl_convert; "
    "sys.stdout.buffer.write(vl_convert.javascript_bundle(*sys.argv[1:]).encode())"
)


class Bundle(SideProcess):
    """Makes the bundle in a process of its own."""

    def __init__(self) -> None:
        super().__init__(_CODE, _SNIPPET, VEGA_LITE_VERSION)

    def text(self) -> str:
        """The bundle, as it may stand in a `<script>`."""
        made = self.answer()
        if made is not None:
            return inline(made.decode())
        import vl_convert

        return inline(vl_convert.javascript_bundle(_SNIPPET, VEGA_LITE_VERSION))


def inline(script: str) -> str:
    """Write a script so that no string in it ends the element that holds it."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script, flags=re.IGNORECASE)
