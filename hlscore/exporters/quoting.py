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
    literal = json.dumps(text, ensure_ascii=False)
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
