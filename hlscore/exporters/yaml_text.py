"""YAML in block style, the same bytes for the same data, without a YAML library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

from hlscore.exporters.quoting import comment, quoted, scalar

# Strings that YAML reads as themselves without quotes. One that starts with a letter is no number
# and no date, and the words for truth and nothing are left out.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*([./-][A-Za-z0-9_]+)*")
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def yaml_text(lines: tuple[str, ...], fields: Mapping[str, object]) -> str:
    """Write a YAML file.

    Args:
        lines: The comment at its top.
        fields: Strings, numbers, truth values, and lists and mappings of them, in order. Empty
            lists and mappings are left out, and so is `None`.

    Returns:
        The text.
    """
    return comment(lines) + "\n" + "".join(_fields(fields, ""))


def _fields(fields: Mapping[str, object], indent: str) -> list[str]:
    written = []
    for key, value in fields.items():
        if value is None or value in ([], {}, ()):
            continue
        written.append(f"{indent}{_text(key)}:{_value(value, indent)}")
    return written


def _value(value: object, indent: str) -> str:
    deeper = f"{indent}  "
    if isinstance(value, Mapping):
        return "\n" + "".join(_fields(cast("Mapping[str, object]", value), deeper))
    if isinstance(value, list | tuple):
        return "\n" + "".join(_item(item, deeper) for item in value)
    return f" {_scalar(value)}\n"


def _item(value: object, indent: str) -> str:
    if not isinstance(value, Mapping):
        return f"{indent}- {_scalar(value)}\n"
    block = "".join(_fields(cast("Mapping[str, object]", value), f"{indent}  "))
    return f"{indent}- {block[len(indent) + 2 :]}"


def _scalar(value: object) -> str:
    return _text(value) if isinstance(value, str) else scalar(cast("float", value))


def _text(text: str) -> str:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _RESERVED
    return text if plain else quoted(text)
