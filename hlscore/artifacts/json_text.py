"""JSON from untrusted files: bounded in size, depth and numbers, and without surprises."""

from __future__ import annotations

import json
import math
import unicodedata
from json import JSONDecodeError
from typing import Any, NoReturn

LARGEST_BYTES = 64 * 2**20

_MOST_VALUES = 10**6
_MOST_KEYS = 1000
_DEEPEST = 40
_LARGEST_WHOLE = 2**63 - 1
_LONGEST_QUOTE = 60
# Controls, halves of surrogate pairs, line and paragraph separators, unassigned.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp", "Cn", "Co")
_TURNS_TEXT = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def parse_json(data: bytes) -> dict[str, Any]:
    """Read one JSON object, in bounded time and memory.

    Args:
        data: The content of a file, UTF-8.

    Raises:
        JSONDecodeError: The text is no JSON; it says where.
        ValueError: It is JSON that no file of this project holds: too large, too deep, a key
            twice in one object, a number beyond 64 bits, text that cannot be printed, no object.
    """
    if len(data) > LARGEST_BYTES:
        raise ValueError(f"it is larger than {LARGEST_BYTES >> 20} MiB")
    if sum(map(data.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise ValueError("it holds more values than any plan")
    try:
        document = json.loads(
            data.decode("utf-8-sig"), parse_constant=_no_constant, object_pairs_hook=_no_duplicates
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise _too_deep() from error
    _check_values(document)
    if not isinstance(document, dict):
        raise ValueError("no JSON object")
    return document


def quoted(value: object) -> str:
    """A value from a file, short enough for an error message."""
    text = repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."


def syntax_fault(error: ValueError) -> str:
    """What is wrong with a JSON text, in a sentence without a full stop."""
    if isinstance(error, JSONDecodeError):
        return f"{error.msg}: line {error.lineno} column {error.colno} (char {error.pos})"
    return str(error)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {quoted(name)} comes twice in one object")
            seen.add(name)
    return found


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {_DEEPEST} deep")


def _check_values(document: object) -> None:
    """Refuse texts, numbers and depths that no plan has, wherever they are."""
    level: list[object] = [document]
    texts = set[str]()
    for _ in range(_DEEPEST):
        inner: list[object] = []
        for value in level:
            if isinstance(value, dict):
                if len(value) > _MOST_KEYS:
                    raise ValueError(f"an object has more than {_MOST_KEYS} keys")
                texts.update(value)
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str):
                texts.add(value)
            elif isinstance(value, int):
                if abs(value) > _LARGEST_WHOLE:
                    raise ValueError("it holds a whole number of more than 64 bits")
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError("it holds a number too large")
        level = inner
        if not level:
            _check_texts(texts)
            return
    raise _too_deep()


def _check_texts(texts: set[str]) -> None:
    # The first in the alphabet, so that the same file gives the same message.
    unreadable = min((text for text in texts if not is_readable(text)), default=None)
    if unreadable is not None:
        raise ValueError(f"{quoted(unreadable)} cannot be printed")


def is_readable(text: str) -> bool:
    """Whether a text shows as itself: no controls, nothing that turns the text around."""
    return text.isprintable() or not any(
        unicodedata.category(letter) in _UNPRINTABLE or letter in _TURNS_TEXT for letter in text
    )
