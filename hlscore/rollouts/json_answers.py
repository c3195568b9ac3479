"""Answers in JSON: where they stand in a completion, and whether two of them are equal."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_FENCE = re.compile(r"```json[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)


class _NoJson(Exception):  # noqa: N818 - never leaves this file
    """A text is no JSON."""


def json_reward(completion: str, answer: str | None) -> float | None:
    """Compare the JSON in a completion with the right one.

    Args:
        completion: Text of the completion: JSON as a whole, or with a fenced `json` block, of
            which the last one counts.
        answer: The right JSON; without one any object or array is right.

    Returns:
        1.0 when both are equal, whatever the order of keys; 0.0 when they are not, or the
        completion has none; `None` when the right answer is no JSON.
    """
    try:
        gold = _read(answer) if answer is not None else None
    except _NoJson:
        return None
    try:
        value = _read_completion(completion)
        if answer is None:
            return 1.0 if isinstance(value, dict | list) else 0.0
        return 1.0 if _same(value, gold) else 0.0
    except (_NoJson, RecursionError):
        return 0.0


def _read_completion(text: str) -> Any:
    try:
        return _read(text)
    except _NoJson:
        blocks = _FENCE.findall(text)
        if not blocks:
            raise
        return _read(blocks[-1])


def _read(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # endless nesting, thousands of digits
        raise _NoJson from error


def _refuse(constant: str) -> float:
    raise ValueError(constant)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):  # 1 == True in Python
        return one is other
    return bool(one == other)
