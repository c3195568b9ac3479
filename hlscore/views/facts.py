"""Facts about plans and runs as people read them."""

from __future__ import annotations

from collections.abc import Callable

from hlscore.agreement.facts import Value
from hlscore.views.wording import memory, percent, short, shortened, visible

_LONGEST = 24
_FORMATS: dict[str, Callable[[float], str]] = {
    "parameters in full": short,
    "trained parameters": short,
    "training memory": memory,
    "chosen again": percent,
    "counted tokens": lambda number: f"{number:,}",
}


def fact_text(name: str, value: Value) -> str:
    """A fact as it is shown.

    Args:
        name: What it is.
        value: Its value; texts come from files.

    Returns:
        A short text.
    """
    if value is None:
        return "-"
    if isinstance(value, str):
        # Of hashes the start is what people compare; of paths and names both ends.
        plain = visible(value)
        return plain[:14] if value.startswith("sha256:") else shortened(plain, _LONGEST)
    if name in _FORMATS:
        return _FORMATS[name](value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
