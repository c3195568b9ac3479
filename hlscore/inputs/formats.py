"""Recognize the format of examples, and check each of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hlscore.errors import DataError
from hlscore.settings import DataSettings

ExampleFormat = Literal[
    "text", "messages", "prompt_completion", "alpaca", "preference", "prompt", "rollouts"
]
Row = Mapping[str, Any]
Columns = Mapping[str, str]
Wanted = tuple[ExampleFormat, ...]

# What TRL hands to the chat template beside the messages.
_TEMPLATE = ("tools", "chat_template_kwargs")
# Columns that a format must have, and others that it reads.
_COLUMNS: dict[ExampleFormat, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "prompt_completion": (("prompt", "completion"), _TEMPLATE),
    "messages": (("messages",), _TEMPLATE),
    "text": (("text",), ()),
    "alpaca": (("instruction", "output"), ("input",)),
    "preference": (("chosen", "rejected"), ("prompt", *_TEMPLATE)),
    "prompt": (("prompt",), ()),
    "rollouts": (
        ("reward",),
        (
            "prompt", "prompt_ids", "completion", "completion_ids", "group", "logprobs",
            "truncated", "finish_reason", "temperature", "step", *_TEMPLATE,
        ),
    ),
}  # fmt: skip
# The first that fits is read: TRL's order. It does not read Alpaca's columns.
SUPERVISED: Wanted = ("prompt_completion", "messages", "text", "alpaca")
LARGEST_REWARD = 1e30
_TURNS = ("messages", "prompt", "completion", "chosen", "rejected")
_MAPPING_EXAMPLES: dict[ExampleFormat, str] = {
    "preference": "--column chosen=preferred --column rejected=other",
    "prompt": "--column prompt=question",
    "rollouts": "--column reward=score",
}
_SHAREGPT = "conversations"
# As LLaMA-Factory and axolotl read them.
_SPEAKERS = {"human": "user", "gpt": "assistant", "observation": "tool"}
_CALL = "function_call"
_JSON_NAMES = {
    bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array",
    Mapping: "an object",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSet:
    """Probe examples as they were read, before tokenization."""

    source: str  # where they come from, for messages and artifacts
    format: ExampleFormat  # which of TRL's formats they have, or `rollouts`
    # One mapping per example, holding just the columns of the format; of prompts all columns, which
    # reward functions may want.
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()  # remarks on how the columns were read


def roles_of(wanted: Wanted) -> set[str]:
    """Columns that formats read; rewards may want any other of a prompt."""
    roles = {role for name in wanted for part in _COLUMNS[name] for role in part}
    return roles | {_SHAREGPT} if "messages" in roles else roles


def no_examples(source: str) -> DataError:
    """The error for data without any example."""
    return DataError(f"'{source}' holds no examples.", hint="Give some.")


def example_set(
    rows: Iterable[Row], source: str, settings: DataSettings, wanted: Wanted = SUPERVISED
) -> ExampleSet:
    """Recognize the format of rows and check each of them."""
    rows = tuple(rows)
    if not rows:
        raise no_examples(source)
    columns, first = settings.columns, rows[0]
    # Conversations are read as messages where nothing else was asked for. As in TRL, ShareGPT's
    # column hides one of messages.
    if (
        "messages" in wanted
        and "messages" not in columns
        and _SHAREGPT in first
        and (first.get("messages") is None or _is_sharegpt(first[_SHAREGPT]))
    ):
        columns = {**columns, "messages": _SHAREGPT}
    there = ", ".join(sorted(first))
    missing = sorted(set(columns.values()) - set(first))
    if missing:
        raise DataError(
            f"'{source}' has no column '{missing[0]}'; it has: {there}.",
            hint="--column takes ROLE=COLUMN, for example --column prompt=question.",
        )
    required = {name: set(_COLUMNS[name][0]) for name in wanted}
    mapped_first = sorted(wanted, key=lambda name: -len(set(settings.columns) & required[name]))
    fitting = (
        name for name in mapped_first
        if all(columns.get(role, role) in first for role in required[name])
    )  # fmt: skip
    found = next(fitting, None)
    if found is None and {"chosen", "rejected"} <= set(first) and "preference" not in wanted:
        raise DataError(
            f"'{source}' holds pairs of a chosen and a rejected completion.",
            hint="Add --objective dpo.",
        )
    if found is None:
        formats = "; ".join(" and ".join(_COLUMNS[name][0]) for name in wanted)
        default = "--column prompt=question --column completion=answer"
        raise DataError(
            f"'{source}' has none of the columns that make an example ({formats}); it has: "
            f"{there}.",
            hint=f"Map them, for example {_MAPPING_EXAMPLES.get(wanted[0], default)}.",
        )
    checked = tuple(
        _Example(row, index, source, columns).read(found) for index, row in enumerate(rows)
    )
    return ExampleSet(
        source=source,
        format="prompt_completion" if found == "alpaca" else found,
        rows=checked,
        notes=tuple(_remarks(rows, columns, found)),
    )


@dataclass(frozen=True, slots=True)
class _Example:
    """A row and where it stands; `columns` says which column has which role."""

    row: Row
    index: int
    source: str
    columns: Columns

    def misfit(self, what: str, hint: str) -> DataError:
        return DataError(f"Example {self.index} in '{self.source}' has {what}.", hint=hint)

    def error(
        self, role: str, what: str, hint: str = "Remove or repair that example."
    ) -> DataError:
        column = self.columns.get(role, role)
        where = f"Column '{column}' of example {self.index} in '{self.source}'"
        return DataError(f"{where} {what}.", hint=hint)

    def read(self, found: ExampleFormat) -> Row:
        """The columns of the format, by role, with turns in TRL's form."""
        required, optional = _COLUMNS[found]
        values = {role: self.row.get(self.columns.get(role, role)) for role in required + optional}
        named = {role: v for role, v in values.items() if role in required or v is not None}
        if found == "rollouts":
            return self.rollout(named)
        texts = {role: value for role, value in named.items() if role not in _TEMPLATE}
        for role, given in texts.items():
            text: Any = str(given) if _is_number(given) else given
            if role in _TURNS and _is_sharegpt(text):
                text = _messages_of(text)
            self.check_text(role, text)
            texts[role] = text
        # A conversation may be continued by text, but not the other way round.
        kinds: dict[str, str] = {
            role: "messages" if isinstance(texts[role], list) else "text"
            for role in ("prompt", "completion", "chosen", "rejected")
            if role in texts
        }
        first = next(iter(kinds), "")
        for role, kind in kinds.items():
            if kind != kinds[first] and (first != "prompt" or kind == "messages"):
                raise self.misfit(
                    f"a {first} of {kinds[first]} and a {role} of {kind}",
                    "Use text for both, or messages for both.",
                )
        if found == "prompt":
            mapped = {role: self.row.get(column) for role, column in self.columns.items()}
            return {**self.row, **mapped, **texts}
        if found == "alpaca":  # as LLaMA-Factory reads it
            asked = "\n".join(part for part in (texts["instruction"], texts.get("input")) if part)
            return {
                "prompt": [{"role": "user", "content": asked}],
                "completion": [{"role": "assistant", "content": texts["output"]}],
            }
        if any(isinstance(value, list) for value in texts.values()):
            return texts | self.template_arguments(named)
        return texts

    def check_text(self, role: str, value: object) -> None:
        """Check text, or messages where the role takes them."""
        if role == "messages" or (role in _TURNS and isinstance(value, list)):
            # A turn that only calls tools has nothing to say.
            fits = isinstance(value, list) and all(
                isinstance(turn, Mapping)
                and "role" in turn
                and ("content" in turn or turn.get("tool_calls"))
                for turn in value
            )
            if not value or not fits:
                hint = 'Each message is an object with "role" and "content".'
                raise self.error(role, "is not a list of messages", hint)
        elif not isinstance(value, str):
            raise self.error(role, f"is {_json_name(value)}, not text")
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            what = "holds half of a surrogate pair, which UTF-8 cannot write"
            raise self.error(role, what) from error

    def template_arguments(self, named: Row) -> dict[str, Any]:
        """What a row hands to the chat template: tools, as a list or as its JSON, and more."""
        found = {role: named[role] for role in _TEMPLATE if role in named}
        if isinstance(found.get("tools"), str):
            try:
                found["tools"] = json.loads(found["tools"])
            except ValueError:
                found["tools"] = ""
        if not isinstance(found.get("tools"), list | None):
            raise self.error("tools", "is not a list of tools, nor the JSON of one")
        arguments = found.get("chat_template_kwargs", {})
        if not isinstance(arguments, Mapping):
            raise self.error("chat_template_kwargs", f"is {_json_name(arguments)}, not an object")
        return found

    def rollout(self, named: dict[str, Any]) -> Row:
        """A completion with its reward."""
        # Lists of numpy are lists; a table of text says null for an empty one.
        named = {role: v.tolist() if hasattr(v, "tolist") else v for role, v in named.items()}
        if self.columns.get("completion", "completion") in self.row:
            named.setdefault("completion", "")
        for text, ids in (("prompt", "prompt_ids"), ("completion", "completion_ids")):
            if ids in named:
                self.check_numbers(ids, named[ids], whole=True)
            elif text not in named:
                raise self.misfit(
                    f"neither '{text}' nor '{ids}'",
                    f"Map one of them, for example --column {text}=COLUMN.",
                )
            self.check_text(text, named.get(text, ""))
        # Messages can only be rendered after those that they answer.
        continues = isinstance(named.get("prompt"), list) or "completion_ids" in named
        if not continues and isinstance(named["completion"], list):
            raise self.misfit(
                "a completion of messages, but its prompt is none",
                "Use messages for both, or give the completion as text or as completion_ids.",
            )
        if "logprobs" in named:
            self.check_numbers("logprobs", named["logprobs"], whole=False)
        reward = named["reward"]
        if reward is not None and not isinstance(reward, bool | int | float):
            raise self.error("reward", f"is {_json_name(reward)}, not a number")
        if reward is not None and not abs(reward) <= LARGEST_REWARD:
            raise self.error(
                "reward",
                f"is {reward}, {'too large' if math.isfinite(reward) else 'not a number'}",
                "Repair it; null says that the completion could not be judged.",
            )
        temperature = named.get("temperature", 1)
        if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
            raise self.error("temperature", f"is {temperature!r}, not a temperature")
        truncated = named.get("truncated", False)
        if not isinstance(truncated, int | float) or truncated not in (0, 1):
            what = f"is {truncated!r}, neither true nor false"
            raise self.error("truncated", what, "Repair it, or remove it.")
        return named | self.template_arguments(named)

    def check_numbers(self, role: str, value: Any, *, whole: bool) -> None:
        """Check token ids (`whole`) or log-probabilities, which may be missing."""
        kinds: tuple[type, ...] = (int,) if whole else (int, float, type(None))
        if (
            not isinstance(value, Sequence)
            or isinstance(value, str)
            or not all(isinstance(item, kinds) and not isinstance(item, bool) for item in value)
        ):
            raise self.error(role, f"is not a list of {'token ids' if whole else 'numbers'}")
        numbers = [item for item in value if item is not None]
        if any(math.isinf(item) for item in numbers):
            raise self.error(role, "is a list with infinite numbers")
        if whole and any(item < 0 for item in numbers):
            raise self.error(role, "is a list with negative ids")
        if not whole and any(item > 1e-6 for item in numbers):
            hint = "Log-probabilities are natural logarithms: 0 or less."
            raise self.error(role, "is a list with positive numbers", hint)


def _json_name(value: object) -> str:
    """A value that is of the wrong type, in the words of JSON."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "null" if value is None else str(value)
    for kind, name in _JSON_NAMES.items():
        if isinstance(value, kind):
            return name
    return f"of type {type(value).__name__}"


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


def _is_turn(turn: object) -> bool:
    return isinstance(turn, Mapping) and {"from", "value"} <= set(turn)


def _is_sharegpt(value: object) -> bool:
    """Whether a value is a list of ShareGPT's turns, with `from` and `value`."""
    return isinstance(value, list) and bool(value) and _is_turn(value[0])


def _messages_of(value: list[Any]) -> list[Any]:
    """ShareGPT's turns as messages (`role`, `content`)."""
    turns: list[Any] = []
    for turn in value:
        if not _is_turn(turn):
            turns.append(turn)
            continue
        rest = {name: part for name, part in turn.items() if name not in ("from", "value")}
        speaker, said = turn["from"], turn["value"]
        if speaker == _CALL:  # tool calls, or their JSON
            try:
                calls = json.loads(said) if isinstance(said, str) else said
            except ValueError:
                calls = None
            calls = calls if isinstance(calls, list) else [calls]
            if calls and all(
                isinstance(each, Mapping) and {"name", "arguments"} <= set(each) for each in calls
            ):
                functions = [{"type": "function", "function": each} for each in calls]
                turns.append({**rest, "role": "assistant", "tool_calls": functions})
                continue
            speaker = "gpt"
        turns.append({**rest, "role": _SPEAKERS.get(speaker, speaker), "content": said})
    return turns


def _remarks(rows: Sequence[Row], columns: Columns, found: ExampleFormat) -> Iterator[str]:
    """What a reader should know of how columns were read, above all where TRL reads otherwise."""
    first = rows[0]
    for role in (*_COLUMNS[found][0], "prompt"):
        column = columns.get(role, role)
        number = next((row[column] for row in rows if _is_number(row.get(column))), None)
        if role in (*_TURNS, "text", "instruction", "output") and number is not None:
            yield (
                f"Numbers in column '{column}' were read as text, such as '{number}'. TRL needs "
                "text there: convert the column before training."
            )
            break
    given = [row.get(columns.get(role, role)) for row in rows for role in _TURNS]
    shared = [value for value in given if value is not None and _is_sharegpt(value)]
    spoke = {str(turn["from"]) for value in shared for turn in value if _is_turn(turn)}
    renamed = sorted(spoke & {*_SPEAKERS, _CALL})
    if renamed:
        roles = [_SPEAKERS.get(name, "assistant") for name in renamed]
        yield (
            f"Speakers {', '.join(renamed)} were read as {', '.join(roles)}, as LLaMA-Factory and "
            "axolotl do. TRL hands their names to the chat template unchanged: rename them before "
            "training with it."
        )
    if not shared and found == "messages" and columns.get("messages") == _SHAREGPT:
        yield "TRL reads this column by the name 'messages' only: rename it before training."
    if found == "alpaca":
        yield (
            "Instruction and input were read as the user's turn, output as the assistant's, as "
            "LLaMA-Factory does. TRL needs them as columns prompt and completion."
        )
    beside = [name for name in ("messages", "text", _SHAREGPT) if first.get(name) is not None]
    if found == "prompt_completion" and beside and not set(beside) & set(columns.values()):
        yield f"Columns prompt and completion were read, as in TRL, not {' and '.join(beside)}." + (
            " TRL adds no end token to completions beside a column text: remove it."
            if "text" in beside and isinstance(first.get("prompt"), str)
            else ""
        )
    if found == "messages" and first.get("prompt") is not None and "messages" not in columns:
        yield "TRL cannot read a column prompt beside messages: remove it before training."
    if found == "prompt" and any(first.get(name) for name in _TEMPLATE):
        yield (
            "Columns tools and chat_template_kwargs are not rendered into prompts: TRL's "
            "GRPOTrainer takes both as arguments, not from the data."
        )
    if any(first.get(name) is not None for name in ("image", "images")):
        yield "Images are not read: the probes are text alone."
