"""Strings, numbers and comments as YAML, TOML and JSON all read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from textwrap import wrap

# Raw in JSON, but not allowed in YAML or TOML, or ends of lines there.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")

_WIDTH = 96


def quoted(text: str) -> str:
    """Write a string in double quotes.

    Args:
        text: Any string.

    Returns:
        A literal that JSON, YAML, TOML and Python read as the same string.
    """
    return block(text, indent=None)


def block(value: object, *, indent: int | None = 4) -> str:
    """Write strings and numbers, or lists and mappings of them, as JSON and Python both read them.

    Args:
        value: The value; truth values and `None` are not written alike in Python.
        indent: Columns of indentation; `None` for one line.

    Returns:
        A literal.
    """
    literal = json.dumps(value, indent=indent, ensure_ascii=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", literal)


def scalar(value: str | float | bool) -> str:
    """Write one value.

    Args:
        value: A string, number or truth value.

    Returns:
        A literal that JSON, YAML and TOML read as the same value.
    """
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    literal = repr(value)
    # YAML 1.1 reads 2e-05 as a string.
    return re.sub(r"^(-?\d+)e", r"\1.0e", literal)


def printable(text: str) -> str:
    """Escape what would end a line or cannot be printed.

    Args:
        text: Any string.

    Returns:
        The text on one line, with such characters written as Python escapes.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def comment(lines: Iterable[str]) -> str:
    """Write lines as a comment of YAML, TOML or Python.

    Args:
        lines: Lines of text; characters that cannot be printed are replaced, long lines folded.

    Returns:
        The lines, each with a comment sign and a line end.
    """
    safe = ("".join(char if char.isprintable() else "?" for char in line) for line in lines)
    parts = (part for line in safe for part in wrap(line, _WIDTH, break_long_words=False) or [""])
    return "".join(f"# {part}\n" if part else "#\n" for part in parts)
