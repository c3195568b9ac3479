"""Mathematical answers: which texts are mathematics, and whether two of them are equal."""

from __future__ import annotations

import logging
import re
import threading
from functools import lru_cache
from typing import Any

from hlscore.rollouts.final_answers import FinalAnswer, final_answer

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

    Returns:
        1.0 when both are equal, 0.0 when they are not or the completion has none, `None` when
        the right answer is no mathematics.
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
