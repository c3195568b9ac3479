"""Numbers and counts as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

_STEPS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_BYTE_STEPS = ((1024**4, "TiB"), (1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))


def count(number: int, noun: str) -> str:
    """A number with its noun: `1 module`, `2,000 modules`."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def first_of(texts: Sequence[str], most: int, between: str = ", ") -> str:
    """The first few of some texts, and how many more there are: `a, b and 3 more`."""
    left, comma = len(texts) - most, "" if between == ", " else ","
    return between.join(texts[:most]) + (f"{comma} and {left:,} more" if left > 0 else "")


def short(number: float) -> str:
    """A large number in three digits: `984 k`, `8.03 B`."""
    for step, letter in _STEPS:
        if number >= 0.9995 * step:
            return f"{number / step:.3g} {letter}"
    return f"{number:.0f}"


def memory(size_bytes: float) -> str:
    """A number of bytes in binary units: `1.55 GiB`."""
    for step, unit in _BYTE_STEPS:
        if size_bytes >= 0.9995 * step:
            size = size_bytes / step
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"
    return f"{size_bytes:.0f} bytes"


def duration(seconds: float) -> str:
    """A time as people say it: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def percent(share: float | None) -> str:
    """A share in three digits, a dash where there is none: `9.52 %`."""
    if share is None:
        return "-"
    return f"{100 * share:,.0f} %" if share >= 9.995 else f"{100 * share:.3g} %"


def near_whole(share: float) -> str:
    """A share close to 1, with two digits of what is missing: `99.3 %`, `99.973 %`."""
    missing = 100 * (1 - share)
    if missing < 1e-4:  # percent points
        return "100 %"
    digits = max(1, 1 - math.floor(math.log10(missing)))
    return f"{100 * share:.{digits}f} %"


def measure(value: float | str | None) -> str:
    """A value of a table: three digits of a fraction, a dash where there is none."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return "-" if value is None else str(value)


def shortened(text: str, most: int) -> str:
    """A text of at most `most` columns of a terminal: the middle of a longer one is left out."""
    if cell_len(text) <= most:
        return text
    kept = max(0, most - 3)
    end = set_cell_size(text[::-1], kept - kept // 2)[::-1]
    return f"{set_cell_size(text, kept // 2)}...{end}"


def visible(text: str) -> str:
    """A text from a file as it can be shown: what would steer a terminal is written out."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
