"""Facts about plans and runs as people read them, for `compare` and `diff`."""

from __future__ import annotations

from collections.abc import Callable

from hlscore.agreement.facts import Fact, Value
from hlscore.wording import memory, percent, short, shortened, visible

_LONGEST = 24
_LONGEST_WHOLE = 200
_FORMATS: dict[str, Callable[[float], str]] = {
    "parameters in full": short,
    "trained parameters": short,
    "training memory": memory,
    "chosen again": percent,
    "counted tokens": lambda number: f"{number:,}",
}


def fact_texts(fact: Fact) -> list[str]:
    """A text per side; whole values where short ones would look the same and are not."""
    texts = [_short(fact.name, value) for value in fact.values]
    if len(set(texts)) == len(set(fact.values)):
        return texts
    return [_whole(fact.name, value) for value in fact.values]


def _short(name: str, value: Value) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        # Of hashes the start is what people compare; of paths and names both ends.
        plain = visible(value)
        return plain[:14] if value.startswith("sha256:") else shortened(plain, _LONGEST)
    if name in _FORMATS:
        return _FORMATS[name](value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _whole(name: str, value: Value) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and name in _FORMATS:
        return f"{value:,}{' bytes' if _FORMATS[name] is memory else ''}"
    return shortened(visible(str(value)), _LONGEST_WHOLE)
