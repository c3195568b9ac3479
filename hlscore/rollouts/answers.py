"""Answers: where the final one stands in a text, the number in it, and equality as mathematics."""

from __future__ import annotations

import logging
import math
import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

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
    box: tuple[int, int] | None = None  # where the content of the last one begins and ends
    opened: list[int | None] = []  # per open brace: where the content of its box starts
    for match in _BRACES.finditer(text):
        if match.group().endswith("{") and match.group() != "\\{":
            opened.append(match.end() if len(match.group()) > 1 else None)
        elif match.group() == "}" and opened:
            start = opened.pop()
            if start is not None and (box is None or start > box[0]):
                box = (start, match.start())
    if box is not None and hashes <= max(box[0], answer):
        return FinalAnswer(text[slice(*box)].strip(), boxed=True)
    marker_end = max(hashes, answer)
    if marker_end < 0:
        return FinalAnswer(text.strip(), marked=False)
    lines = (_BOLD.sub("", line.strip()) for line in text[marker_end:].splitlines())
    return FinalAnswer(next((line for line in lines if line), ""))


def whole_number_text(text: str) -> float | None:
    """The number that a text is, such as `1,234`, `$18.50`, `-3`, `1/2`, `50%`; else `None`."""
    cleaned = _plain(text).strip().rstrip(".").rstrip("%").strip()
    match = _NUMBER.fullmatch(cleaned)
    return _value(match) if match else None


def number_in(text: str, *, last: bool) -> float | None:
    """The last number of a text, or the first one behind its last `=`, as in `2 * 3 = 6 m^2`."""
    found = list(_NUMBER.finditer(_plain(text if last else text.rpartition("=")[2])))
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


# The library warns of every text that takes too long, and quotes the text.
logging.getLogger("math_verify").setLevel(logging.ERROR)
# Of any one step of the library; what is slower is no plain answer.
_LIMIT_SECONDS = 2
# The library's patterns take time that grows with the square of the text.
_LONGEST = 4000

_DELIMITED = re.compile(r"\$[^$]+\$|\\\(.+\\\)|\\\[.+\\\]", re.DOTALL)
_NUMBER_WITH_UNIT = re.compile(
    r"[-+]?\\?[$€£¥]?[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)\s*\\?%?(?: [A-Za-z]{2,}[A-Za-z ]*)?\.?"
)
_COMMAND = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+"
)
_WORD = re.compile(r"[A-Za-z]{3,}")
_SYMBOLS = re.compile(r"[\w\s+\-*/^=<>(){}\[\]|,.!'\\&;%$\u2212]*", re.ASCII)
_OPERATOR = re.compile(r"[\d+\-*/^=<>\\]")
_EXPONENT = re.compile(r"(?<=\d)[eE]([-+]?\d+)\b")
_THOUSANDS = re.compile(r"(?<=\d) (?=\d{3}\b)")
_GAP = re.compile(r"\d \d")
_MIXED = re.compile(r"(-?\d+) (\d+)/(\d+)")


def math_reward(completion: str, answer: str | None) -> float | None:
    r"""Compare the final answer of a completion with the right one, as mathematics.

    What counts as mathematics in the right answer: numbers, also with a currency or a unit
    (`1,234`, `$18`, `5 km`); LaTeX, with or without dollar signs; and bare expressions with a
    digit, an operator or a command in them, such as `2x+1`, `(1,2)` or `\text{even}`. A bare
    word or letter (`Wednesday`, `h`) may be anything, so that it is none; a letter as the answer
    is written `$x$` or `\boxed{x}`. Neither is prose with numbers (`Room 5`, `12:30`).
    """
    gold = _parsed_gold(answer) if answer is not None else None
    if gold is None:
        return None
    found = final_answer(completion)
    text = _as_latex(found) or (f"${found.text}$" if found.boxed else found.text)
    return 1.0 if _equal(gold, _parsed(text)) else 0.0


@lru_cache(maxsize=4096)  # the completions of a prompt share their answer
def _parsed_gold(answer: str) -> list[Any] | None:
    text = _as_latex(final_answer(answer))
    parsed = _parsed(text) if text else []
    # The library falls back to the text itself, which is equal to nothing but itself.
    return parsed if any(not isinstance(item, str) for item in parsed) else None


def _as_latex(answer: FinalAnswer) -> str | None:
    """Write an answer such that the library reads all of it; `None` for what is prose."""
    text = answer.text
    if _NUMBER_WITH_UNIT.fullmatch(text):
        return text.replace("\\", "")
    if _DELIMITED.search(text):
        return text
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text) if _MIXED.fullmatch(text) else text
    text = _THOUSANDS.sub("", text)
    bare = _COMMAND.sub("", text)
    if not text or _WORD.search(bare) or not _SYMBOLS.fullmatch(bare) or _GAP.search(bare):
        return None
    if not answer.boxed and not _OPERATOR.search(text):
        return None
    if text.startswith("{") and text.endswith("}"):
        text = rf"\{{{text[1:-1]}\}}"
    text = _EXPONENT.sub(r"*10^{\1}", text.removesuffix(".")).replace("**", "^")
    return f"${text}$"


def _parsed(text: str) -> list[Any]:
    from math_verify import parse
    from math_verify.errors import TimeoutException

    try:
        return list(parse(text[-_LONGEST:], parsing_timeout=_limit()))
    except (Exception, TimeoutException):  # the text is untrusted and the grammar is large
        return []


def _equal(gold: list[Any], other: list[Any]) -> bool:
    from math_verify import verify
    from math_verify.errors import TimeoutException

    try:
        return bool(verify(gold, other, timeout_seconds=_limit()))
    except (Exception, TimeoutException):
        return False


def _limit() -> Any:
    # The library's limit is a signal, and those reach the main thread only.
    return _LIMIT_SECONDS if threading.current_thread() is threading.main_thread() else None
