"""A curve as a row of block characters."""

from __future__ import annotations

from collections.abc import Sequence

UNICODE = "·▁▂▃▄▅▆▇█"
ASCII = "._,-=+*%#"


def sparkline(values: Sequence[float], *, levels: str = UNICODE) -> str:
    """Draw a curve, one character per value, from zero to the largest.

    Args:
        levels: Characters to draw with; the first is for what is not above zero.
    """
    largest = max(values, default=0.0)
    return "".join(_level(value, largest, levels) for value in values)


def _level(value: float, largest: float, levels: str) -> str:
    if value <= 0:
        return levels[0]
    return levels[1 + round((len(levels) - 2) * (value / largest))]
