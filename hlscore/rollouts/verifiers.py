"""The built-in verifiers: functions that say whether a completion is right."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hlscore.errors import DataError, UsageError
from hlscore.rollouts.answers import final_answer, math_reward, number_in, whole_number_text

Verifier = Callable[[str, str | None], float | None]

ANSWER_COLUMNS = ("answer", "solution", "ground_truth")
_PATTERN_PREFIX = "regex:"
_FENCE = re.compile(r"```json[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)


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
