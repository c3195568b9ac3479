"""Where a value stands in the text of a JSON file."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass

JsonPath = tuple[str | int, ...]

# Possessive: what could be gone back to would take a hundred bytes for each letter.
_PIECE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}:,]|[^\s\[\]{}:,"]+')


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in a text file.

    Attributes:
        line: Counted from 1.
        column: Counted from 1.
    """

    line: int
    column: int


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
            key_next = _next(stack)
        elif piece != ":":
            if key_next:
                stack[-1] = _key(piece)
            if (key_next or (stack and isinstance(stack[-1], int))) and stack[-1] in names:
                path = tuple(stack)
                if path in asked:
                    yield path, match.start()
            key_next = piece == "{"
            if piece in "[{":
                stack.append("" if key_next else 0)


def _next(stack: list[str | int]) -> bool:
    """Go to the next entry of the innermost container; whether that starts with a key."""
    last = stack[-1]
    if isinstance(last, int):
        stack[-1] = last + 1
        return False
    return True


def _key(piece: str) -> str:
    if "\\" not in piece:
        return piece[1:-1]
    key: str = json.loads(piece)
    return key
