"""The built-in verifiers: functions that say whether a completion is right.

They find the final answer in a text, read the number in it, and compare answers as mathematics.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hlscore.errors import DataError, UsageError

Verifier = Callable[[str, str | None], float | None]

ANSWER_COLUMNS = ("answer", "solution", "ground_truth")
_PATTERN_PREFIX = "regex:"
_FENCE = re.compile(r"```json[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)

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


# Mathematics

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


# Verifiers

# Each gives 1.0 for a right completion, 0.0 for a wrong one, and `None` where the answer is missing
# or cannot be judged.


def numeric_reward(completion: str, answer: str | None) -> float | None:
    """Compare the final number of a completion with the right one, to six digits."""
    gold = whole_number_text(final_answer(answer).text) if answer is not None else None
    if gold is None:
        return None
    found = final_answer(completion)
    number = number_in(found.text, last=not found.marked)
    return 1.0 if number is not None and math.isclose(number, gold, rel_tol=1e-6) else 0.0


def exact_reward(completion: str, answer: str | None) -> float | None:
    """Compare the final answer of a completion, or all of it, with the right text."""
    if answer is None:
        return None
    return 1.0 if final_answer(completion).text == final_answer(answer).text else 0.0


def regex_reward(completion: str, answer: str | None) -> float | None:
    """Search a completion for a pattern."""
    if answer is None:
        return None
    try:
        return 1.0 if re.search(answer, completion) else 0.0
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError(
            f"The answer '{answer[:80]}' is not a regular expression: {error}."
        ) from error


def json_reward(completion: str, answer: str | None) -> float | None:
    """Compare the JSON in a completion with the right one; without one any object or list is right.

    The completion is JSON as a whole, or holds it in a fenced `json` block, of which the last one
    counts. The order of keys does not matter.
    """
    try:
        gold = None if answer is None else _read_json(answer)
    except ValueError:
        return None
    for text in (completion, *_FENCE.findall(completion)[-1:]):
        try:
            value = _read_json(text)
            right = isinstance(value, dict | list) if answer is None else _same(value, gold)
        except (ValueError, RecursionError):
            continue
        return 1.0 if right else 0.0
    return 0.0


def _read_json(text: str) -> Any:
    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(number)
        return float(number)

    try:
        return json.loads(text, parse_constant=finite, parse_float=finite)
    except RecursionError as error:
        raise ValueError("endless nesting") from error


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):  # 1 == True in Python
        return one is other
    return bool(one == other)


VERIFIERS: Mapping[str, Verifier] = {
    "math": math_reward,
    "numeric": numeric_reward,
    "exact": exact_reward,
    "regex": regex_reward,
    "json": json_reward,
}


def is_builtin(name: str) -> bool:
    """Say whether a reward is one of the built-in verifiers."""
    return name in VERIFIERS or name.startswith(_PATTERN_PREFIX)


def find_verifier(name: str) -> Verifier:
    """Find a built-in verifier."""
    if not name.startswith(_PATTERN_PREFIX):
        return VERIFIERS[name]
    pattern = name.removeprefix(_PATTERN_PREFIX)
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"--reward is '{name}', and '{pattern}' is not a regular expression: {error}.",
            hint="Put it in single quotes, so that the shell leaves it as it is.",
        ) from error
    if not pattern:
        raise UsageError(
            f"--reward is '{name}', without a pattern.",
            hint="Give regex:PATTERN, or `regex` alone for patterns from the answer column.",
        )
    return lambda completion, _: regex_reward(completion, pattern)


def verify_all(
    name: str,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
) -> list[float | None]:
    """Judge completions with a built-in verifier: one reward each."""
    verifier, count = find_verifier(name), len(completions)
    column = next((known for known in ANSWER_COLUMNS if known in columns), None)
    if column is None and name != "json" and not name.startswith(_PATTERN_PREFIX):
        there = ", ".join(sorted(columns)) or "none beside the prompt"
        raise DataError(
            f"--reward {name} needs a column with the right answers; the data have: {there}.",
            hint="Name it with --column answer=NAME.",
        )
    answers = [None] * count if column is None else columns[column]
    rewards = []
    for prompt, completion, answer in zip(prompts, completions, answers, strict=True):
        if isinstance(answer, dict | list | bool):
            right: str | None = json.dumps(answer)
        else:
            right = None if answer is None else str(answer)
        try:
            rewards.append(verifier(completion_text(completion), right))
        except DataError as error:
            start = " ".join(completion_text(prompt).split())[:60]
            raise DataError(f"{error.message} It belongs to the prompt '{start}'.") from error
    return rewards


def completion_text(completion: Any) -> str:
    """The text of a completion: itself, or that of its last message."""
    if not isinstance(completion, list):
        return "" if completion is None else str(completion)
    last = completion[-1] if completion else ""
    content = last.get("content") if isinstance(last, dict) else last
    if isinstance(content, list):  # text and images in parts
        parts = [part.get("text", "") for part in content if isinstance(part, dict)]
        return "".join(str(part or "") for part in parts)
    return "" if content is None else str(content)
