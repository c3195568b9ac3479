"""Read probe examples: built-in, local files, or streamed from the hub, through `datasets`."""

from __future__ import annotations

import glob
import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from lzma import LZMAError
from pathlib import Path
from typing import Any, TypeVar

from hlscore.errors import DataError, UsageError, first_line
from hlscore.inputs.formats import (
    SUPERVISED,
    ExampleSet,
    Row,
    Wanted,
    example_set,
    no_examples,
    roles_of,
)  # fmt: skip
from hlscore.inputs.hub import BUILTIN_FOLDER, BUILTIN_PREFIX, hub_error, looks_like_path
from hlscore.paths import existing_path
from hlscore.settings import DataSettings, ObjectiveSettings, RankSettings

Item = TypeVar("Item")

BUILTIN_KNOWN = "builtin:known"
"""Tasks that the built-in model was trained on."""
BUILTIN_NEW = "builtin:new"
"""A task that it was not trained on and can learn."""
_BUILTIN_FILES = {BUILTIN_KNOWN: "probes.jsonl", BUILTIN_NEW: "new_probes.jsonl"}

_BUILDERS = {
    ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
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
    """Read the probe examples; `seed` draws `settings.samples` of them where there are more."""
    # Rewards and preferences need a task that the built-in model solves at times.
    name = settings.data or (BUILTIN_NEW if wanted == SUPERVISED else BUILTIN_KNOWN)
    path, builtin = existing_path(name), name.startswith(BUILTIN_PREFIX)
    if settings.config is not None and (builtin or (path is not None and not path.is_dir())):
        raise UsageError(
            f"--data-config is '{settings.config}', but only data sets of the hub and "
            "directories have configurations.",
            hint="Remove --data-config.",
        )
    if builtin:
        if settings.split != "train":
            raise UsageError(
                f"--split is '{settings.split}', but {name} has one split.", hint="Remove --split."
            )
        rows = builtin_pairs(name) if wanted == ("preference",) else builtin_rows(name)
        rows = draw_rows(rows, settings.samples, seed)
    elif path is not None:
        rows = _local_rows(path, settings, seed, wanted)
    elif is_on_hub(name):
        rows = _hub_rows(name, settings, seed)
    else:
        raise DataError(
            f"There is no file or directory at '{name}'.",
            hint=f"Give a {' '.join(_BUILDERS)} file, a directory of them, or a hub id.",
        )
    return example_set(rows, name, settings, wanted)


def is_on_hub(data: str | None) -> bool:
    """Whether data is named by a hub id."""
    return (
        data is not None
        and not data.startswith(BUILTIN_PREFIX)
        and not looks_like_path(data)
        and _kind_of(Path(data)) not in _BUILDERS
    )


def draw_rows(rows: Sequence[Item], samples: int, seed: int) -> list[Item]:
    """Draw rows without replacement, in the order they came in; all when `samples` is 0."""
    if samples == 0 or samples >= len(rows):
        return list(rows)
    return [rows[place] for place in sorted(random.Random(seed).sample(range(len(rows)), samples))]


def cut(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Cut a sequence into parts of at most `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def builtin_rows(name: str) -> list[Row]:
    """Built-in probes by name: prompt, completion, answer and kind."""
    if name not in _BUILTIN_FILES:
        raise DataError(
            f"There are no built-in probes '{name}'.",
            hint=f"There are: {', '.join(_BUILTIN_FILES)}.",
        )
    text = (BUILTIN_FOLDER / _BUILTIN_FILES[name]).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


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
    import pyarrow as pa
    import pyarrow.parquet as pq
    from fsspec.compression import compr, register_compression

    _check_local(path)
    if "zstd" not in compr:  # pyarrow reads .zst files for `datasets`
        register_compression(
            "zstd", lambda file, **_: pa.CompressedInputStream(file, "zstd"), ["zst"]
        )
    whole = settings.split.partition("[")[0]
    table_of: Any
    with tempfile.TemporaryDirectory(prefix="hlscore-data-") as cache, _quiet_datasets():
        try:
            if (path / "state.json").is_file():
                saved = datasets.load_from_disk(str(path))
                sizes, table_of = {whole: len(saved)}, {whole: saved}.__getitem__
            else:
                kind = str(path)
                options: dict[str, Any] = {"name": settings.config}
                if path.is_file():  # whatever split is asked for
                    kind = _BUILDERS[_kind_of(path)]
                    options = {"data_files": {whole or "train": glob.escape(str(path))}}
                builder = datasets.load_dataset_builder(kind, cache_dir=cache, **options)
                builder.download_and_prepare()
                sizes = {name: part.num_examples for name, part in builder.info.splits.items()}
                table_of = builder.as_dataset
        except Exception as error:
            rows, broken = _json_lines(path)
            if rows and isinstance(error, datasets.exceptions.DatasetGenerationError):
                spans = _spans(path, settings, {whole: len(rows)})
                found = [row for _, start, stop in spans for row in rows[start:stop]]
                return draw_rows(found, settings.samples, seed)
            cause = error.__cause__ or error
            empty = isinstance(cause, StopIteration)
            with suppress(OSError, ValueError):
                empty |= path.suffix.lower() == ".parquet" and not pq.read_metadata(path).num_rows
            if empty:
                raise no_examples(str(path)) from error
            raise DataError(
                f"'{path}' cannot be read{broken}: {first_line(cause)}",
                hint="Check that the file is complete and has the format its suffix says.",
            ) from error
        spans = _spans(path, settings, sizes)
        parts = [table_of(name).select(range(start, stop)) for name, start, stop in spans]
        if not parts:
            raise no_examples(str(path))
        table = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)

        # Columns that nobody asked for are named but not decoded; rewards may ask for any.
        places = draw_rows(range(len(table)), settings.samples, seed)
        if "prompt" in wanted:
            return [dict(table[place]) for place in places]
        roles = {settings.columns.get(role, role) for role in roles_of(wanted)}
        asked = table.select_columns([name for name in table.column_names if name in roles])
        empty_row = dict.fromkeys(table.column_names)
        if not asked.column_names:  # one row is enough to say which columns there are
            return [empty_row]
        return [empty_row | dict(asked[place]) for place in places]


def _spans(
    path: Path, settings: DataSettings, sizes: Mapping[str, int]
) -> list[tuple[str, int, int]]:
    """Split, first row and row after the last of each part with rows that `--split` names."""
    import datasets

    wrong = UsageError(
        f"--split is '{settings.split}'.", hint="Use a name such as train, or train[:100]."
    )
    if not settings.split:
        raise wrong
    missing = {part.partition("[")[0].strip() for part in settings.split.split("+")} - set(sizes)
    if missing:
        raise DataError(
            f"'{path}' has no split '{min(missing)}'; it has: {', '.join(sizes)}.",
            hint="Name another with --split.",
        )
    try:
        parts = datasets.ReadInstruction.from_spec(settings.split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise wrong from error
    spans = [
        (part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
        for part in parts
    ]
    return [span for span in spans if span[1] < span[2]]


def _check_local(path: Path) -> None:
    readable = (
        f"hlscore reads {' '.join(_BUILDERS)} files, text also as {' '.join(_PACKED)}, and "
        "directories of them."
    )
    if not path.is_dir():
        if _kind_of(path) not in _BUILDERS:
            raise DataError(f"'{path}' is a {path.suffix or 'suffixless'} file.", hint=readable)
        if path.stat().st_size == 0:
            raise no_examples(str(path))
        return
    files = (item for item in path.rglob("*") if item.is_file())
    if not any(set(item.suffixes) & set(_BUILDERS) for item in files):
        raise DataError(f"The directory '{path}' holds no file to read.", hint=readable)
    # A data card can name files anywhere: a local directory must not reach for the network.
    for card in (path / "README.md", path / ".huggingface.yaml"):
        text = card.read_text("utf-8", errors="replace") if card.is_file() else ""
        header = text.split("\n---")[0] if card.suffix == ".md" else text
        if "data_files" in header and "://" in header:
            raise DataError(
                f"The data card '{card}' names files outside its directory.",
                hint="Remove `data_files` from it, or give the hub id of the data set.",
            )


def _json_lines(path: Path) -> tuple[list[Row], str]:
    """Read JSON lines that no table holds: rewards `1` and later `0.5`, answers `3` and `"x"`.

    Returns:
        The rows; or none, and where the file stops to be JSON, such as ` at line 3`.
    """
    from fsspec.compression import compr
    from fsspec.utils import infer_compression

    rows: list[Row] = []
    number = 0
    if _kind_of(path) != ".jsonl":
        return [], ""
    try:
        with path.open("rb") as raw:
            for line in compr[infer_compression(path.name)](raw, mode="rb"):
                number += 1
                row = json.loads(line) if line.strip() else {}
                if not isinstance(row, dict):
                    return [], f" at line {number}"
                rows += [row] if row else []
    except (json.JSONDecodeError, UnicodeDecodeError):
        return [], f" at line {number}"
    except (ValueError, OSError, EOFError, LZMAError):  # packed, but damaged
        return [], ""
    empty = dict.fromkeys(name for row in rows for name in row)
    return [empty | dict(row) for row in rows], ""


def _kind_of(path: Path) -> str:
    """Suffix that says how a file is read, whether it is packed or not."""
    packed = path.suffix.lower() in _PACKED
    kind = Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    return "" if packed and kind not in _PACKABLE else kind


def _hub_rows(name: str, settings: DataSettings, seed: int) -> list[Row]:
    import datasets
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub

    count = settings.samples or _MOST_STREAMED + 1
    opened = False
    try:
        with _quiet_datasets():
            stream = datasets.load_dataset(
                name, name=settings.config, split=settings.split, streaming=True
            )
            opened = True
            if settings.samples:
                buffer = max(1000, 4 * settings.samples)
                stream = stream.shuffle(seed=seed, buffer_size=buffer)
            rows: list[Row] = [dict(row) for row in islice(stream, count)]
    except Exception as error:
        text, kind = first_line(error), type(error)
        if isinstance(error, DatasetNotFoundError | hub.HFValidationError):
            kind = hub.RepositoryNotFoundError
            with suppress(Exception):  # `datasets` does not say that it is there, but gated
                if HfApi().dataset_info(name).gated:
                    kind = hub.GatedRepoError
        hint = "Check its hub page: hlscore reads what `datasets` can stream."
        message = f"The data set '{name}' cannot be read: {text}"
        if issubclass(kind, hub.HfHubHTTPError | hub.LocalEntryNotFoundError):
            message, hint = hub_error(f"data set '{name}'", kind, text)
        elif isinstance(error, ValueError) and not opened:
            message = f"The data set '{name}' cannot be read as asked: {text}"
            hint = (
                "Name the part to read with --split and --data-config; a hub data set is "
                "streamed, so take --samples instead of a slice."
            )
        elif isinstance(error, ConnectionError):
            message = f"The data set '{name}' cannot be reached: {text}"
            hint = "Check the network and HF_HUB_OFFLINE, or give a local copy."
        raise DataError(message, hint=hint) from error
    if len(rows) > max(settings.samples, _MOST_STREAMED):
        raise DataError(
            f"The data set '{name}' holds more than {_MOST_STREAMED:,} rows, too many to stream.",
            hint="Give --samples N, or download the data set and give its path.",
        )
    return rows


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Keep `datasets` from showing progress and logging errors."""
    import datasets

    was_on = not datasets.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if was_on:
            datasets.enable_progress_bars()
