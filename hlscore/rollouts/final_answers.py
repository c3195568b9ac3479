"""Where the final answer stands in a text, and how to read a number there."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_HASHES = re.compile(r"####")
_ANSWER = re.compile(r"\banswer\b[*_\s]*:|# ->", re.IGNORECASE)
_BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")

# Marks around an answer, or behind a marker: `**Answer:** **6**`.
_BOLD = re.compile(r"^(\*\*\s*){1,2}|\s*\*\*$")

# Digits inside words and behind other digits are no numbers of their own.
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>[-+]?)(?P<above>{_DECIMAL})(?:\s*/\s*(?P<below>{_DECIMAL}))?"
)
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
_CURRENCY = re.compile(r"\\?\$|[€£¥₹₽₩]")


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """The final answer of a text, without white space and bold marks around it."""

    text: str
    boxed: bool = False  # whether it stood in `\boxed{...}`, that is, in LaTeX
    marked: bool = True  # whether there is a marker; otherwise the whole text is the answer


def final_answer(text: str) -> FinalAnswer:
    r"""Find the final answer of a text: in the box, or on the first line behind the marker.

    The marker is the last `####`, else the last `\boxed{...}` with balanced braces, else the last
    `Answer:` or `# ->`. A `####` with another marker behind it is a heading, and does not count.
    """
    hashes, answer = (
        max((match.end() for match in marker.finditer(text)), default=-1)
        for marker in (_HASHES, _ANSWER)
    )
    boxed = _last_box(text)
    if boxed is not None and hashes <= max(boxed[0], answer):
        return FinalAnswer(boxed[1].strip(), boxed=True)
    start = max(hashes, answer)
    if start < 0:
        return FinalAnswer(text.strip(), marked=False)
    lines = (_BOLD.sub("", line.strip()) for line in text[start:].splitlines())
    return FinalAnswer(next((line for line in lines if line), ""))


def _last_box(text: str) -> tuple[int, str] | None:
    opened: list[int | None] = []  # per open brace: where the content of its box starts
    last = None
    for match in _BRACES.finditer(text):
        if match.group().endswith("{") and match.group() != "\\{":
            opened.append(match.end() if len(match.group()) > 1 else None)
        elif match.group() == "}" and opened:
            start = opened.pop()
            if start is not None and (last is None or start > last[0]):
                last = (start, match.start())
    return (last[0], text[last[0] : last[1]]) if last else None


def whole_number_text(text: str) -> float | None:
    """Read a text that is a number and nothing else.

    Args:
        text: Such as `1,234`, `$18.50`, `-3`, `1/2`, `50%`.

    Returns:
        The number; `None` when there is anything else in the text.
    """
    cleaned = _plain(text).strip().rstrip(".").rstrip("%").strip()
    match = _NUMBER.fullmatch(cleaned)
    return _value(match) if match else None


def number_in(text: str, *, last: bool) -> float | None:
    """Find a number in a text.

    Args:
        last: Whether to give the last number of the text; otherwise it is the first one behind
            the last `=`, for `2 * 3 = 6 m^2`.

    Returns:
        The number; `None` when there is none.
    """
    numbers = _NUMBER.finditer(_plain(text if last else text.rpartition("=")[2]))
    found = list(numbers)
    return _value(found[-1 if last else 0]) if found else None


def _plain(text: str) -> str:
    text = _FRACTION.sub(r"\1/\2", text)
    text = _CURRENCY.sub("", text).replace("\u2212", "-")
    return text.replace("{,}", ",").replace("\\,", "").replace("\\!", "").replace("\\%", "%")


def _value(match: re.Match[str]) -> float | None:
    value = float(match["above"].replace(",", ""))
    if match["below"]:
        below = float(match["below"].replace(",", ""))
        if below == 0:
            return None
        value /= below
    return (-value if match["sign"] == "-" else value) if math.isfinite(value) else None
