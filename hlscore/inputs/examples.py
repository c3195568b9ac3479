"""Read probe examples: built-in, local files, or streamed from the hub, through `datasets`."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from hlscore.errors import DataError, HlscoreError, first_line
from hlscore.inputs.hub import hub_error
from hlscore.settings import DataSettings

ExampleFormat = Literal["text", "messages", "prompt_completion"]
Row = Mapping[str, Any]

BUILTIN_PROBES = "builtin:probes"

_BUILDERS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_FORMATS: dict[ExampleFormat, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSet:
    """Probe examples as they were read, before tokenization.

    Attributes:
        source: Where they come from, for messages and artifacts.
        format: Which of TRL's formats they have.
        rows: One mapping per example, holding just the columns of the format.
    """

    source: str
    format: ExampleFormat
    rows: tuple[Row, ...]


def read_examples(settings: DataSettings, *, seed: int) -> ExampleSet:
    """Read the probe examples.

    Args:
        settings: Which examples.
        seed: Seed of the draw where there are more than `settings.samples`.

    Returns:
        The examples, with columns renamed to the ones hlscore knows.

    Raises:
        HlscoreError: The data cannot be found or read, is empty, or lacks a column.
    """
    if settings.data is None:
        return example_set(_draw(_builtin_rows(), settings.samples, seed), BUILTIN_PROBES, settings)
    path = Path(settings.data).expanduser()
    if path.exists():
        rows = _local_rows(path, settings, seed)
    elif path.suffix in _BUILDERS or settings.data.startswith((".", "/", "~")):
        raise DataError(f"There is no file or directory at '{settings.data}'.")
    else:
        rows = _hub_rows(settings, seed)
    return example_set(rows, settings.data, settings)


def example_set(rows: Iterable[Row], source: str, settings: DataSettings) -> ExampleSet:
    """Recognize the format of rows and check each of them.

    Args:
        rows: Examples as mappings.
        source: Where they come from.
        settings: The column map.

    Returns:
        The checked examples.

    Raises:
        DataError: There are no rows, a column is missing, or a value has the wrong type.
    """
    rows = tuple(rows)
    if not rows:
        raise DataError(f"'{source}' holds no examples.", hint="Give at least 2.")
    found = _find_format(rows[0], source, settings)
    checks = {role: _check_messages if role == "messages" else _check_text for role in _roles()}
    checked = []
    for index, row in enumerate(rows):
        example = {}
        for role in _FORMATS[found]:
            column = settings.columns.get(role, role)
            value = row.get(column)
            if found == "prompt_completion" and isinstance(value, list):
                _check_messages(value, column, index, source)
            else:
                checks[role](value, column, index, source)
            example[role] = value
        checked.append(example)
    return ExampleSet(source=source, format=found, rows=tuple(checked))


def _roles() -> tuple[str, ...]:
    return tuple(role for roles in _FORMATS.values() for role in roles)


def _find_format(row: Row, source: str, settings: DataSettings) -> ExampleFormat:
    mapped = set(settings.columns)
    missing = sorted(set(settings.columns.values()) - set(row))
    if missing:
        raise DataError(
            f"'{source}' has no column '{missing[0]}'; it has: {', '.join(sorted(row))}.",
            hint="--column takes ROLE=COLUMN, for example --column prompt=question.",
        )
    by_preference = sorted(_FORMATS, key=lambda name: -len(mapped & set(_FORMATS[name])))
    for name in by_preference:
        if all(settings.columns.get(role, role) in row for role in _FORMATS[name]):
            return name
    raise DataError(
        f"'{source}' has none of the columns that make an example (text; messages; prompt and "
        f"completion); it has: {', '.join(sorted(row))}.",
        hint="Map them, for example --column prompt=question --column completion=answer.",
    )


def _check_text(value: object, column: str, index: int, source: str) -> None:
    if not isinstance(value, str):
        raise DataError(
            f"Column '{column}' of example {index} in '{source}' is "
            f"{type(value).__name__}, not text.",
            hint="Remove or repair that example.",
        )


def _check_messages(value: object, column: str, index: int, source: str) -> None:
    well_formed = (
        isinstance(value, list)
        and value
        and all(isinstance(turn, Mapping) and {"role", "content"} <= set(turn) for turn in value)
    )
    if not well_formed:
        raise DataError(
            f"Column '{column}' of example {index} in '{source}' is not a list of messages.",
            hint='Each message is an object with "role" and "content".',
        )


def _draw(rows: list[Row], samples: int, seed: int) -> list[Row]:
    if samples == 0 or samples >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), samples))]


def _builtin_rows() -> list[Row]:
    text = (resources.files("hlscore.inputs") / "builtin" / "probes.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _local_rows(path: Path, settings: DataSettings, seed: int) -> list[Row]:
    import datasets

    if path.is_file() and path.suffix not in _BUILDERS:
        raise DataError(
            f"'{path}' is a {path.suffix or 'suffixless'} file.",
            hint=f"hlscore reads {' '.join(_BUILDERS)} files, and directories of them.",
        )
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"'{path}' is empty.")
    with tempfile.TemporaryDirectory(prefix="hlscore-data-") as cache, _quiet_datasets():
        try:
            if (path / "state.json").is_file():
                loaded = datasets.load_from_disk(str(path))
                table = loaded[settings.split] if isinstance(loaded, dict) else loaded
            elif path.is_file():
                table = datasets.load_dataset(
                    _BUILDERS[path.suffix],
                    data_files={settings.split.partition("[")[0]: str(path)},
                    split=settings.split,
                    cache_dir=cache,
                )
            else:
                table = datasets.load_dataset(str(path), split=settings.split, cache_dir=cache)
        except Exception as error:
            raise _local_error(path, settings, error) from error
        count = len(table)
        wanted = _draw([{"i": i} for i in range(count)], settings.samples, seed)
        return [dict(table[row["i"]]) for row in wanted]


def _local_error(path: Path, settings: DataSettings, error: Exception) -> HlscoreError:
    cause = error.__cause__ or error
    text = first_line(error)
    if isinstance(error, KeyError) or "nknown split" in text:
        return DataError(
            f"'{path}' has no split '{settings.split}'.", hint="Name another with --split."
        )
    return DataError(
        f"'{path}' cannot be read: {first_line(cause if isinstance(cause, Exception) else error)}",
        hint="Check that the file is complete and has the format its suffix says.",
    )


def _hub_rows(settings: DataSettings, seed: int) -> list[Row]:
    import datasets

    name = settings.data or ""
    count = settings.samples or None
    buffer = max(1000, 4 * settings.samples)
    try:
        with _quiet_datasets():
            stream = datasets.load_dataset(
                name, name=settings.config, split=settings.split, streaming=True
            )
            if count:
                stream = stream.shuffle(seed=seed, buffer_size=buffer)
            return [dict(row) for row in islice(stream, count)]
    except Exception as error:
        raise _hub_data_error(settings, error) from error


def _hub_data_error(settings: DataSettings, error: Exception) -> HlscoreError:
    from datasets.exceptions import DatasetNotFoundError

    name = settings.data or ""
    text = first_line(error)
    if isinstance(error, DatasetNotFoundError):
        gated = "gated" in text
        return DataError(
            f"The data set '{name}' is gated."
            if gated
            else f"There is no data set '{name}', neither as a local path nor on the hub.",
            hint="Accept its terms on its hub page, then log in: `hf auth login` or HF_TOKEN."
            if gated
            else "Check the spelling; for a private one log in with `hf auth login`.",
        )
    if isinstance(error, ValueError) and ("split" in text or "onfig name" in text):
        return DataError(
            f"The data set '{name}' cannot be read as asked: {text}",
            hint="Name the part to read with --split and --data-config.",
        )
    known = hub_error(name, None, "data set", error)
    return DataError(known.message, hint=known.hint)


class _quiet_datasets:  # noqa: N801 - used like a function
    """Keep the progress bars of `datasets` off while hlscore shows its own."""

    def __enter__(self) -> None:
        """Turn the bars off."""
        import datasets

        self._was_on = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        """Turn them on again if they were."""
        import datasets

        if self._was_on:
            datasets.enable_progress_bars()
