"""The built-in verifiers: functions that say whether a completion is right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from hlscore.errors import DataError, UsageError
from hlscore.rollouts.final_answers import (
    completion_text,
    final_answer,
    number_in,
    same_number,
    whole_number_text,
)
from hlscore.rollouts.json_answers import json_reward
from hlscore.rollouts.math_answers import math_reward

Verifier = Callable[[str, str | None], float | None]

ANSWER_COLUMNS = ("answer", "solution", "ground_truth")
_PATTERN_PREFIX = "regex:"


def numeric_reward(completion: str, answer: str | None) -> float | None:
    """Compare the final number of a completion with the right one.

    Returns:
        1.0 when both are equal to six digits, else 0.0; `None` when the answer is no number.
    """
    gold = whole_number_text(_answer_in(answer)) if answer is not None else None
    if gold is None:
        return None
    marked = final_answer(completion)
    if marked is None:
        number = number_in(completion, last=True)
    else:
        number = number_in(marked.text, last=False)
    return 1.0 if number is not None and same_number(number, gold) else 0.0


def exact_reward(completion: str, answer: str | None) -> float | None:
    """Compare the final answer of a completion, or all of it, with the right text.

    Returns:
        1.0 when both are the same but for white space around them, else 0.0; `None` without an
        answer.
    """
    if answer is None:
        return None
    return 1.0 if _answer_in(completion) == _answer_in(answer) else 0.0


def regex_reward(completion: str, answer: str | None) -> float | None:
    """Search a completion for a pattern.

    Returns:
        1.0 when it matches somewhere, else 0.0; `None` without a pattern.
    """
    if answer is None:
        return None
    try:
        found = re.search(answer, completion)
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError(
            f"The answer '{answer[:80]}' is not a regular expression: {error}."
        ) from error
    return 1.0 if found else 0.0


def _answer_in(text: str) -> str:
    marked = final_answer(text)
    return marked.text if marked else text.strip()


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
    return partial(_matches, pattern)


def _matches(pattern: str, completion: str, answer: str | None) -> float | None:
    del answer  # the pattern is the same for all
    return regex_reward(completion, pattern)


def verify_all(
    name: str,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
) -> list[float | None]:
    """Judge completions with a built-in verifier.

    Returns:
        One reward per completion, `None` where the answer cannot be judged.
    """
    verifier = find_verifier(name)
    answers = _answers(name, len(completions), columns)
    rewards = []
    for prompt, completion, answer in zip(prompts, completions, answers, strict=True):
        try:
            rewards.append(verifier(completion_text(completion), _answer_text(answer)))
        except DataError as error:
            start = " ".join(completion_text(prompt).split())[:60]
            raise DataError(f"{error.message} It belongs to the prompt '{start}'.") from error
    return rewards


def _answers(name: str, count: int, columns: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    column = next((known for known in ANSWER_COLUMNS if known in columns), None)
    if column is not None:
        return columns[column]
    if name == "json" or name.startswith(_PATTERN_PREFIX):
        return [None] * count
    there = ", ".join(sorted(columns)) or "none beside the prompt"
    raise DataError(
        f"--reward {name} needs a column with the right answers; the data have: {there}.",
        hint="Name it with --column answer=NAME.",
    )


def _answer_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, dict | list | bool) else str(value)
