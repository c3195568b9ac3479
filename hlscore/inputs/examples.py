"""Read probe examples: built-in, local files, or streamed from the hub, through `datasets`."""

from __future__ import annotations

import glob
import json
import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from hlscore.errors import DataError, HlscoreError, UsageError, first_line
from hlscore.inputs.hub import hub_error
from hlscore.paths import existing_path
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
        _refuse_config(settings)
        return example_set(
            draw_rows(_builtin_rows(), settings.samples, seed), BUILTIN_PROBES, settings
        )
    path = existing_path(settings.data)
    if path is not None:
        rows = _local_rows(path, settings, seed)
    elif _looks_like_path(settings.data):
        raise DataError(
            f"There is no file or directory at '{settings.data}'.",
            hint=f"Give a {' '.join(_BUILDERS)} file, a directory of them, or a hub id.",
        )
    else:
        rows = _hub_rows(settings, seed)
    return example_set(rows, settings.data, settings)


def _looks_like_path(name: str) -> bool:
    known = Path(name).suffix.lower() in _BUILDERS
    return known or name.startswith((".", "/", "~")) or name.count("/") > 1


def _refuse_config(settings: DataSettings) -> None:
    if settings.config is not None:
        raise UsageError(
            f"--data-config is '{settings.config}', but only data sets of the hub and "
            "directories have configurations.",
            hint="Leave --data-config away.",
        )


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
        raise _no_examples(source)
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
        if isinstance(example.get("prompt"), str) and isinstance(example["completion"], list):
            raise DataError(
                f"Example {index} in '{source}' has a prompt of text and a completion of messages.",
                hint="Use text for both, or messages for both.",
            )
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


def draw_rows(rows: list[Row], samples: int, seed: int) -> list[Row]:
    """Draw rows without replacement, in the order they came in; all when `samples` is 0."""
    return [rows[place] for place in _draw_places(len(rows), samples, seed)]


def _draw_places(count: int, samples: int, seed: int) -> Sequence[int]:
    if samples == 0 or samples >= count:
        return range(count)
    return sorted(random.Random(seed).sample(range(count), samples))


def _builtin_rows() -> list[Row]:
    text = (resources.files("hlscore.inputs") / "builtin" / "probes.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _local_rows(path: Path, settings: DataSettings, seed: int) -> list[Row]:
    import datasets

    _check_local(path, settings)
    with tempfile.TemporaryDirectory(prefix="hlscore-data-") as cache, _quiet_datasets():
        try:
            if (path / "state.json").is_file():
                # Like a single file it has no splits of its own: only a slice means something.
                table = datasets.load_from_disk(str(path))
                table = table.select(_sliced(settings.split, len(table)))
            elif path.is_file():
                table = datasets.load_dataset(
                    _BUILDERS[path.suffix.lower()],
                    data_files={settings.split.partition("[")[0]: glob.escape(str(path))},
                    split=settings.split,
                    cache_dir=cache,
                )
            else:
                table = datasets.load_dataset(
                    str(path), name=settings.config, split=settings.split, cache_dir=cache
                )
            return _table_rows(table, settings, seed)
        except Exception as error:
            raise _local_error(path, settings, error) from error


def _table_rows(table: Any, settings: DataSettings, seed: int) -> list[Row]:
    """Read the drawn rows; columns that nobody asked for are named but not decoded."""
    roles = {settings.columns.get(role, role) for role in _roles()}
    asked = table.select_columns([name for name in table.column_names if name in roles])
    empty = dict.fromkeys(table.column_names)
    if not asked.column_names:  # one row is enough to say which columns there are
        return [empty]
    places = _draw_places(len(table), settings.samples, seed)
    return [empty | dict(asked[place]) for place in places]


def _check_local(path: Path, settings: DataSettings) -> None:
    readable = f"hlscore reads {' '.join(_BUILDERS)} files, and directories of them."
    if path.is_dir():
        files = (item for item in path.rglob("*") if item.is_file())
        if not any(set(item.suffixes) & set(_BUILDERS) for item in files):
            raise DataError(f"The directory '{path}' holds no file to read.", hint=readable)
        _refuse_remote_files(path)
        return
    _refuse_config(settings)
    if path.suffix.lower() not in _BUILDERS:
        raise DataError(f"'{path}' is a {path.suffix or 'suffixless'} file.", hint=readable)
    if path.stat().st_size == 0:
        raise _no_examples(str(path))


def _refuse_remote_files(path: Path) -> None:
    """A data card can name files anywhere: a local directory must not reach for the network."""
    for card in (path / "README.md", path / ".huggingface.yaml"):
        text = card.read_text("utf-8", errors="replace") if card.is_file() else ""
        settings = text.split("\n---")[0] if card.suffix == ".md" else text
        if "data_files" in settings and "://" in settings:
            raise DataError(
                f"The data card '{card}' names files outside its directory.",
                hint="Remove `data_files` from it, or give the hub id of the data set.",
            )


def _no_examples(source: str) -> DataError:
    return DataError(f"'{source}' holds no examples.", hint="Give at least 2.")


def _sliced(split: str, count: int) -> range:
    """Rows that a split such as `train[:10]` names in a table without splits."""
    import datasets

    if "+" in split:
        raise ValueError("Split name cannot be a sum here.")
    name, _, _ = split.partition("[")
    (part,) = datasets.ReadInstruction.from_spec(split).to_absolute({name: count})
    return range(part.from_ or 0, count if part.to is None else part.to)


def _local_error(path: Path, settings: DataSettings, error: Exception) -> HlscoreError:
    cause = error.__cause__ or error
    text = first_line(error)
    if any(words in text for words in ("instruction format", "Split name", "slice spec")):
        return UsageError(
            f"--split is '{settings.split}'.", hint="Use a name such as train, or train[:100]."
        )
    if "nknown split" in text:
        return DataError(
            f"'{path}' has no split '{settings.split}': {text}", hint="Name another with --split."
        )
    if "corresponds to no data" in text or "BatchSize must be greater" in first_line(cause):
        return _no_examples(str(path))
    place = _broken_line(path)
    return DataError(
        f"'{path}' cannot be read{place}: {first_line(cause)}",
        hint="Check that the file is complete and has the format its suffix says.",
    )


def _broken_line(path: Path) -> str:
    """Where a `.jsonl` file stops to be JSON, as ` at line 3`; empty where that is not known."""
    if path.suffix.lower() != ".jsonl":
        return ""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                content = json.loads(line) if line.strip() else {}
            except ValueError:
                return f" at line {number}"
            if not isinstance(content, dict):
                return f" at line {number}"
    return ""


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
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, text = settings.data or "", first_line(error)
    if isinstance(error, DatasetNotFoundError) and "gated" in text:
        return DataError(
            f"The data set '{name}' is gated.",
            hint="Accept its terms on its hub page, then log in: `hf auth login` or HF_TOKEN.",
        )
    if isinstance(error, DatasetNotFoundError | HFValidationError):
        return DataError(
            f"There is no data set '{name}', neither as a local path nor on the hub.",
            hint="Check the spelling; for a private one log in with `hf auth login`.",
        )
    if isinstance(error, ValueError) and any(
        word in text for word in ("split", "onfig name", "BuilderConfig")
    ):
        return DataError(
            f"The data set '{name}' cannot be read as asked: {text}",
            hint="Name the part to read with --split and --data-config; a hub data set is "
            "streamed, so take --samples instead of a slice.",
        )
    if isinstance(error, HfHubHTTPError | LocalEntryNotFoundError):
        known = hub_error(name, None, "data set", error)
        return DataError(known.message, hint=known.hint)
    if isinstance(error, ConnectionError):
        return DataError(
            f"The data set '{name}' cannot be reached: {text}",
            hint="Check the network and HF_HUB_OFFLINE, or give a local copy.",
        )
    return DataError(
        f"The data set '{name}' cannot be read: {text}",
        hint="Check its hub page: hlscore reads what `datasets` can stream.",
    )


class _quiet_datasets:  # noqa: N801 - used like a function
    """Keep `datasets` from showing progress and logging errors: hlscore does both itself."""

    def __enter__(self) -> None:
        """Turn bars and log off."""
        import datasets

        self._was_on = not datasets.are_progress_bars_disabled()
        self._verbosity = datasets.logging.get_verbosity()
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        """Turn them on again if they were."""
        import datasets

        datasets.logging.set_verbosity(self._verbosity)
        if self._was_on:
            datasets.enable_progress_bars()
