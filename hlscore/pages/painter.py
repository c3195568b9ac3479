"""Drawing of a Vega-Lite specification as an image."""

from __future__ import annotations

import json
from typing import Literal

from hlscore.pages.charts import VEGA_LITE_VERSION, Spec
from hlscore.pages.side_process import SideProcess

Image = Literal[".png", ".svg"]

_SCALE = 2
_CODE = """
import json, sys
from hlscore.pages.painter import paint
suffix = sys.argv[1]
paint({"data": {"values": []}, "mark": "point"}, suffix)  # loads Vega and the fonts
sys.stdout.buffer.write(paint(json.load(sys.stdin), suffix))
"""


class Painter(SideProcess):
    """Draws in a process of its own, which loads Vega while the files are read."""

    def __init__(self, suffix: Image) -> None:
        super().__init__(_CODE, suffix)
        self._suffix: Image = suffix

    def draw(self, spec: Spec) -> bytes:
        """Draw a specification."""
        drawn = self.answer(json.dumps(spec).encode())
        return paint(spec, self._suffix) if drawn is None else drawn


def paint(spec: Spec, suffix: Image) -> bytes:
    """Draw a specification in this process.

    Args:
        suffix: `.svg`, or `.png` with two pixels for each one of the layout.

    Returns:
        The content of the file; equal inputs give equal bytes.
    """
    import vl_convert

    if suffix == ".svg":
        text: str = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE_VERSION)
        return text.encode()
    image: bytes = vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE_VERSION, scale=_SCALE)
    return image
