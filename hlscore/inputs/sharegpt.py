"""Turns of ShareGPT and rows of Alpaca in TRL's form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# As LLaMA-Factory and axolotl read them.
_SPEAKERS = {"human": "user", "gpt": "assistant", "observation": "tool"}
_CALL = "function_call"


def is_sharegpt(value: object) -> bool:
    """Whether a value is a list of turns with `from` and `value`."""
    return isinstance(value, list) and bool(value) and _is_turn(value[0])


def _is_turn(turn: object) -> bool:
    return isinstance(turn, Mapping) and {"from", "value"} <= set(turn)


def chatml(value: Any) -> Any:
    """Turn ShareGPT's turns (`from`, `value`) into messages (`role`, `content`).

    Returns:
        The messages; anything else as it is.
    """
    if not is_sharegpt(value):
        return value
    turns: list[Any] = []
    for turn in value:
        if not _is_turn(turn):
            turns.append(turn)
            continue
        rest = {name: part for name, part in turn.items() if name not in ("from", "value")}
        speaker, said = turn["from"], turn["value"]
        calls = _calls(said) if speaker == _CALL else []
        if calls:
            turns.append({**rest, "role": "assistant", "tool_calls": calls})
        else:
            role = "assistant" if speaker == _CALL else _SPEAKERS.get(speaker, speaker)
            turns.append({**rest, "role": role, "content": said})
    return turns


def _calls(said: object) -> list[Mapping[str, Any]]:
    """Tool calls of a `function_call` turn, written as JSON; empty where it is none."""
    try:
        content = json.loads(said) if isinstance(said, str) else said
    except ValueError:
        return []
    calls = content if isinstance(content, list) else [content]
    if not all(isinstance(call, Mapping) and {"name", "arguments"} <= set(call) for call in calls):
        return []
    return [{"type": "function", "function": call} for call in calls]


def speakers_note(values: Iterable[Any]) -> Iterator[str]:
    """Say which speakers were renamed: TRL renames none."""
    spoke = {
        str(turn["from"])
        for value in values
        if is_sharegpt(value)
        for turn in value
        if _is_turn(turn)
    }
    renamed = sorted(spoke & {*_SPEAKERS, _CALL})
    if renamed:
        roles = [_SPEAKERS.get(name, "assistant") for name in renamed]
        yield (
            f"Speakers {', '.join(renamed)} were read as {', '.join(roles)}, as LLaMA-Factory and "
            "axolotl do. TRL hands their names to the chat template unchanged: rename them before "
            "training with it."
        )


def from_alpaca(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of Alpaca as a prompt and its completion, as LLaMA-Factory reads it."""
    asked = "\n".join(part for part in (row["instruction"], row.get("input")) if part)
    return {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }
