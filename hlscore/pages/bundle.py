"""The JavaScript that draws the charts of a page: Vega, Vega-Lite and Vega-Embed in one text."""

from __future__ import annotations

import re
import subprocess
import sys
from types import TracebackType
from typing import Self

from hlscore.pages.charts import VEGA_LITE_VERSION

_SNIPPET = "window.vegaEmbed = vegaEmbed;"
_CODE = (
    "import sys, vl_convert; "
    "sys.stdout.buffer.write(vl_convert.javascript_bundle(*sys.argv[1:]).encode())"
)


class Bundle:
    """Makes the bundle in a process of its own, while the files of the report are read.

    That takes more than a second in which vl-convert lets no other thread run.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the process."""
        try:
            self._process = subprocess.Popen(  # noqa: S603 - nothing of it comes from a user
                [sys.executable, "-P", "-c", _CODE, _SNIPPET, VEGA_LITE_VERSION],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            self._process = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process if nobody asked for its result."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def text(self) -> str:
        """The bundle, as it may stand in a `<script>`."""
        if self._process is not None:
            made, _ = self._process.communicate()
            failed, self._process = self._process.returncode != 0, None
            if not failed:
                return inline(made.decode())
        import vl_convert

        return inline(vl_convert.javascript_bundle(_SNIPPET, VEGA_LITE_VERSION))


def inline(script: str) -> str:
    """Write a script so that no string in it ends the element that holds it."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script, flags=re.IGNORECASE)
