"""Read probe examples: built-in, local files, or streamed from the hub, through `datasets`."""

from __future__ import annotations

import glob
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import resources
from itertools import islice
from lzma import LZMAError
from pathlib import Path
from typing import Any

from hlscore.errors import DataError, HlscoreError, UsageError, first_line
from hlscore.inputs.formats import (
    SUPERVISED,
    ExampleSet,
    Row,
    Wanted,
    example_set,
    no_examples,
    roles_of,
)
from hlscore.inputs.hub import BUILTIN_PREFIX, hub_error
from hlscore.paths import existing_path
from hlscore.settings import DataSettings, ObjectiveSettings, RankSettings

BUILTIN_KNOWN = "builtin:known"
"""Tasks that the built-in model was trained on."""
BUILTIN_NEW = "builtin:new"
"""A task that it was not trained on and can learn."""
_BUILTIN_FILES = {BUILTIN_KNOWN: "probes.jsonl", BUILTIN_NEW: "new_probes.jsonl"}

_BUILDERS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_PACKED = (".gz", ".zst", ".bz2", ".xz")
_PACKABLE = (".jsonl", ".json", ".csv")
_MOST_STREAMED = 100_000
"""Rows that are read of a hub data set where all are asked for."""


def wanted_formats(objective: ObjectiveSettings) -> Wanted:
    """Formats that an objective can use."""
    if objective.objective == "grpo":
        return ("prompt",) if objective.rollouts is None else ("rollouts",)
    return ("preference",) if objective.objective == "dpo" else SUPERVISED


def read_probes(settings: RankSettings) -> ExampleSet:
    """Read what a run probes: examples, pairs, prompts or rollouts."""
    data, wanted = settings.data, wanted_formats(settings.objective)
    if settings.objective.rollouts is not None:
        # Groups are drawn later, when all completions of each are known.
        data = replace(data, data=settings.objective.rollouts, samples=0)
    return read_examples(data, seed=settings.seed, wanted=wanted)


def read_examples(settings: DataSettings, *, seed: int, wanted: Wanted = SUPERVISED) -> ExampleSet:
    """Read the probe examples.

    Args:
        seed: Seed of the draw where there are more than `settings.samples`.
    """
    # Rewards and preferences need a task that the built-in model solves at times.
    default = BUILTIN_NEW if wanted == SUPERVISED else BUILTIN_KNOWN
    if settings.data is None or settings.data.startswith(BUILTIN_PREFIX):
        _refuse_config(settings)
        name = settings.data or default
        rows = builtin_pairs(name) if wanted == ("preference",) else builtin_rows(name)
        return example_set(draw_rows(rows, settings.samples, seed), name, settings, wanted)
    path = existing_path(settings.data)
    if path is not None:
        rows = _local_rows(path, settings, seed, wanted)
    elif _looks_like_path(settings.data):
        raise DataError(
            f"There is no file or directory at '{settings.data}'.",
            hint=f"Give a {' '.join(_BUILDERS)} file, a directory of them, or a hub id.",
        )
    else:
        rows = _hub_rows(settings, seed)
    return example_set(rows, settings.data, settings, wanted)


def _looks_like_path(name: str) -> bool:
    known = _kind_of(Path(name)) in _BUILDERS
    return known or name.startswith((".", "/", "~")) or name.count("/") > 1


def is_on_hub(data: str | None) -> bool:
    """Whether data is named by a hub id."""
    return (
        data is not None
        and not data.startswith(BUILTIN_PREFIX)
        and existing_path(data) is None
        and not _looks_like_path(data)
    )


def _refuse_config(settings: DataSettings) -> None:
    if settings.config is not None:
        raise UsageError(
            f"--data-config is '{settings.config}', but only data sets of the hub and "
            "directories have configurations.",
            hint="Remove --data-config.",
        )


def draw_rows(rows: list[Row], samples: int, seed: int) -> list[Row]:
    """Draw rows without replacement, in the order they came in; all when `samples` is 0."""
    return [rows[place] for place in _draw_places(len(rows), samples, seed)]


def _draw_places(count: int, samples: int, seed: int) -> Sequence[int]:
    if samples == 0 or samples >= count:
        return range(count)
    return sorted(random.Random(seed).sample(range(count), samples))


def builtin_rows(name: str) -> list[Row]:
    """Built-in probes by name: prompt, completion, answer and kind."""
    if name not in _BUILTIN_FILES:
        raise DataError(
            f"There are no built-in probes '{name}'.",
            hint=f"There are: {', '.join(_BUILTIN_FILES)}.",
        )
    file = resources.files("hlscore.inputs") / "builtin" / _BUILTIN_FILES[name]
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def builtin_pairs(name: str) -> list[Row]:
    """Pairs from built-in probes: the rejected completion ends in another probe's answer."""
    rows = builtin_rows(name)
    pairs: list[Row] = []
    for index, row in enumerate(rows):
        worked = row["completion"].removesuffix(row["answer"])
        others = (*rows[index + 1 :], *rows[:index])
        wrong = next(
            other["answer"]
            for other in others
            if other["kind"] == row["kind"] and other["answer"] != row["answer"]
        )
        pairs.append(
            {"prompt": row["prompt"], "chosen": row["completion"], "rejected": worked + wrong}
        )
    return pairs


def _local_rows(path: Path, settings: DataSettings, seed: int, wanted: Wanted) -> list[Row]:
    import datasets

    _check_local(path, settings)
    _register_zstd()
    with tempfile.TemporaryDirectory(prefix="hlscore-data-") as cache, _quiet_datasets():
        try:
            if (path / "state.json").is_file():
                # Like a single file it has no splits of its own: only a slice means something.
                table = datasets.load_from_disk(str(path))
                table = table.select(_sliced(settings.split, len(table)))
            elif path.is_file():
                table = datasets.load_dataset(
                    _BUILDERS[_kind_of(path)],
                    data_files={settings.split.partition("[")[0]: glob.escape(str(path))},
                    split=settings.split,
                    cache_dir=cache,
                )
            else:
                table = datasets.load_dataset(
                    str(path), name=settings.config, split=settings.split, cache_dir=cache
                )
            return _table_rows(table, settings, seed, wanted)
        except Exception as error:
            failed = isinstance(error, datasets.exceptions.DatasetGenerationError)
            rows = _plain_rows(path, settings, seed) if failed else []
            if rows:
                return rows
            raise _local_error(path, settings, error) from error


def _table_rows(table: Any, settings: DataSettings, seed: int, wanted: Wanted) -> list[Row]:
    """Read the drawn rows; columns that nobody asked for are named but not decoded."""
    if "prompt" in wanted:  # reward functions may ask for any column
        return [dict(table[place]) for place in _draw_places(len(table), settings.samples, seed)]
    roles = {settings.columns.get(role, role) for role in roles_of(wanted)}
    asked = table.select_columns([name for name in table.column_names if name in roles])
    empty = dict.fromkeys(table.column_names)
    if not asked.column_names:  # one row is enough to say which columns there are
        return [empty]
    places = _draw_places(len(table), settings.samples, seed)
    return [empty | dict(asked[place]) for place in places]


def _plain_rows(path: Path, settings: DataSettings, seed: int) -> list[Row]:
    """Rows of JSON lines that no table holds: rewards `1` and later `0.5`, answers `3` and `"x"`.

    Empty where the file is not in JSON lines.
    """
    if _kind_of(path) != ".jsonl" or _broken_line(path):
        return []
    rows = [json.loads(line) for line in _unpacked_lines(path) if line.strip()]
    empty = dict.fromkeys(name for row in rows for name in row)
    part = _sliced(settings.split, len(rows))
    return draw_rows([empty | rows[place] for place in part], settings.samples, seed)


def _check_local(path: Path, settings: DataSettings) -> None:
    readable = (
        f"hlscore reads {' '.join(_BUILDERS)} files, text also as {' '.join(_PACKED)}, and "
        "directories of them."
    )
    if path.is_dir():
        files = (item for item in path.rglob("*") if item.is_file())
        if not any(set(item.suffixes) & set(_BUILDERS) for item in files):
            raise DataError(f"The directory '{path}' holds no file to read.", hint=readable)
        _refuse_remote_files(path)
        return
    _refuse_config(settings)
    if _kind_of(path) not in _BUILDERS:
        raise DataError(f"'{path}' is a {path.suffix or 'suffixless'} file.", hint=readable)
    if path.stat().st_size == 0:
        raise no_examples(str(path))


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
    if (
        isinstance(cause, StopIteration)
        or "corresponds to no data" in text
        or "BatchSize must be greater" in first_line(cause)
    ):
        return no_examples(str(path))
    place = _broken_line(path)
    return DataError(
        f"'{path}' cannot be read{place}: {first_line(cause)}",
        hint="Check that the file is complete and has the format its suffix says.",
    )


def _broken_line(path: Path) -> str:
    """Where a `.jsonl` file stops to be JSON, as ` at line 3`; empty where that is not known."""
    if _kind_of(path) != ".jsonl":
        return ""
    number = 0
    try:
        for line in _unpacked_lines(path):
            number += 1
            if not isinstance(json.loads(line) if line.strip() else {}, dict):
                return f" at line {number}"
    except (json.JSONDecodeError, UnicodeDecodeError):
        return f" at line {number}"
    except (ValueError, OSError, EOFError, LZMAError):  # packed, but damaged
        return ""
    return ""


def _kind_of(path: Path) -> str:
    """Suffix that says how a file is read, whether it is packed or not."""
    packed = path.suffix.lower() in _PACKED
    kind = Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    return "" if packed and kind not in _PACKABLE else kind


def _unpacked_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, packed or not."""
    from fsspec.compression import compr
    from fsspec.utils import infer_compression

    with path.open("rb") as raw:
        yield from compr[infer_compression(path.name)](raw, mode="rb")


def _register_zstd() -> None:
    """Let `datasets` read .zst files without a package besides pyarrow."""
    import pyarrow as pa
    from fsspec.compression import compr, register_compression

    if "zstd" not in compr:
        register_compression(
            "zstd", lambda file, **_: pa.CompressedInputStream(file, "zstd"), ["zst"]
        )


def _hub_rows(settings: DataSettings, seed: int) -> list[Row]:
    import datasets

    name = settings.data or ""
    count = settings.samples or _MOST_STREAMED + 1
    buffer = max(1000, 4 * settings.samples)
    try:
        with _quiet_datasets():
            stream = datasets.load_dataset(
                name, name=settings.config, split=settings.split, streaming=True
            )
            if settings.samples:
                stream = stream.shuffle(seed=seed, buffer_size=buffer)
            rows: list[Row] = [dict(row) for row in islice(stream, count)]
    except Exception as error:
        raise _hub_data_error(settings, error) from error
    if len(rows) > max(settings.samples, _MOST_STREAMED):
        raise DataError(
            f"The data set '{name}' holds more than {_MOST_STREAMED:,} rows, too many to stream.",
            hint="Give --samples N, or download the data set and give its path.",
        )
    return rows


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
