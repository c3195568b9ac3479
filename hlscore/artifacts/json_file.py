"""JSON from untrusted files: bounded in size, depth and numbers, and the place of each value."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

LARGEST_BYTES = 64 * 2**20

JsonPath = tuple[str | int, ...]

_MOST_VALUES = 10**6
_MOST_KEYS = 1000
_DEEPEST = 40
_TOO_DEEP = f"it is nested more than {_DEEPEST} deep"
_LARGEST_WHOLE = 2**63 - 1
_LONGEST_QUOTE = 60
_TURNS_TEXT = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Possessive: what could be gone back to would take a hundred bytes for each letter.
_PIECE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}:,]|[^\s\[\]{}:,"]+')


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in a text file; line and column count from 1."""

    line: int
    column: int


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
            data.decode("utf-8-sig"), parse_constant=_no_constant, object_pairs_hook=_object
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    _check_value(document)
    if not isinstance(document, dict):
        raise ValueError("no JSON object")
    return document


def _check_value(value: object, depth: int = 0) -> None:
    """Refuse texts, numbers and depths that no plan has, wherever they are."""
    if depth == _DEEPEST:
        raise ValueError(_TOO_DEEP)
    if isinstance(value, str):
        if not _is_readable(value):
            raise ValueError(f"{quoted(value)} cannot be printed")
    elif isinstance(value, int):
        if abs(value) > _LARGEST_WHOLE:
            raise ValueError("it holds a whole number of more than 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("it holds a number too large")
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_value(name, depth + 1)
            _check_value(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_value(inner, depth + 1)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {quoted(name)} comes twice in one object")
    if len(found) > _MOST_KEYS:
        raise ValueError(f"an object has more than {_MOST_KEYS} keys")
    return found


def _is_readable(text: str) -> bool:
    """Whether a text shows as itself: no controls, nothing that turns the text around."""
    return text.isprintable() or all(
        letter.isprintable()
        or (unicodedata.category(letter) in ("Cf", "Zs") and letter not in _TURNS_TEXT)
        for letter in text
    )


def quoted(value: object) -> str:
    """A value from a file, short enough for an error message."""
    text = repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."


def find_places(text: str, wanted: Collection[JsonPath]) -> dict[JsonPath, Place]:
    """Find the lines of some values.

    Args:
        wanted: Keys and indices that lead to each value; the empty path is the whole document.

    Returns:
        Place of each value: of its key where it has one. A path that leads nowhere has the place
        of the innermost value on the way that is there.
    """
    asked = {path[:length] for path in wanted for length in range(len(path) + 1)}
    offsets = {(): 0} | dict(_walk(text, asked))
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    found = {}
    for path in wanted:
        there = next(path[:n] for n in range(len(path), -1, -1) if path[:n] in offsets)
        line = bisect_right(starts, offsets[there])
        found[path] = Place(line=line, column=offsets[there] - starts[line - 1] + 1)
    return found


def _walk(text: str, asked: Collection[JsonPath]) -> Iterator[tuple[JsonPath, int]]:
    """The asked paths that are there, with the offset of their key or value."""
    names = {path[-1] for path in asked if path}
    stack: list[str | int] = []  # key or index in each container that is open
    key_next = False
    for match in _PIECE.finditer(text):
        piece = match.group()
        if piece in "]}":
            stack.pop()
        elif piece == ",":
            last = stack[-1]
            key_next = isinstance(last, str)
            if isinstance(last, int):
                stack[-1] = last + 1
        elif piece != ":":
            if key_next:
                stack[-1] = json.loads(piece) if "\\" in piece else piece[1:-1]
            if (key_next or (stack and isinstance(stack[-1], int))) and stack[-1] in names:
                path = tuple(stack)
                if path in asked:
                    yield path, match.start()
            key_next = piece == "{"
            if piece in "[{":
                stack.append("" if key_next else 0)
