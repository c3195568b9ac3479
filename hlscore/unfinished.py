"""Runs that were stopped: their files in the folder of the results, and what run they are of."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hlscore._version import __version__
from hlscore.errors import UsageError
from hlscore.records import ModelIdentity

PROGRESS_PREFIX = ".hlscore-progress"
# Folders in which results are written before they are moved to their place.
STAGE_PREFIX = ".hlscore-unfinished-"
# Libraries write to files of their own naming first: the folder around them has this suffix.
HALF_WRITTEN = ".unfinished"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedRun:
    """Where an unfinished run is stored."""

    folder: Path
    every_seconds: float
    resume: bool


def unfinished_runs(folder: Path, suffixes: tuple[str, ...] = (".safetensors", ".jsonl")) -> bool:
    """Whether a folder holds the progress of a run that did not end: gradients, completions."""
    return any(path.suffix in suffixes for path in folder.glob(f"{PROGRESS_PREFIX}-*"))


def remove_unfinished(folder: Path, *, keep_progress: bool = False) -> None:
    """Remove what a killed run left half-written in a folder, and all stored progress."""
    stored = f"{PROGRESS_PREFIX}-*{HALF_WRITTEN if keep_progress else ''}"
    for pattern in (stored, f"{STAGE_PREFIX}*"):
        for path in folder.glob(pattern):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def stored_lines(path: Path) -> list[Any]:
    """Read a file of one JSON value per line that may have been cut off while it was written.

    What follows the last whole line is removed from the file, so that it can be appended to.
    """
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    found = [json.loads(line) for line in whole.splitlines()]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return found


def store_lines(path: Path, values: Iterable[object]) -> None:
    """Append values to a file, one line of JSON each; they are on the disk when this returns."""
    lines = [json.dumps(value) + "\n" for value in values]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def describe_run(
    settings: Mapping[str, object],
    model: ModelIdentity,
    probes: str,
    *,
    device: str,
    processes: int,
) -> dict[str, object]:
    """Say what run progress belongs to."""
    return {
        "hlscore": __version__,
        "torch": version("torch"),
        "settings": dict(settings),
        "model": asdict(model),
        "probes": probes,
        "device": device,
        "processes": processes,
    }


def check_same_run(folder: Path, stored: object, wanted: object) -> None:
    """Refuse to go on with another run."""
    if difference := first_difference(stored, wanted):
        raise UsageError(
            f"The unfinished run in '{folder}' is another one: {difference}.",
            hint="Resume it with the same options, or start anew with --force.",
        )


def nothing_to_resume(folder: Path) -> UsageError:
    """The error where no run was stopped."""
    return UsageError(
        f"There is no unfinished run in '{folder}' to resume.", hint="Start without --resume."
    )


def first_difference(stored: object, wanted: object, place: str = "") -> str:
    """Name the first place where two nested records differ; empty where they are equal."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in wanted | stored:
            inner = f"{place}.{key}" if place else str(key)
            if found := first_difference(stored.get(key), wanted.get(key), inner):
                return found
        return ""
    if stored == wanted:
        return ""
    texts = ["not set" if value is None else str(value) for value in (stored, wanted)]
    before, now = (text if len(text) <= 40 else f"{text[:37]}..." for text in texts)
    return f"{place} was {before}, now it is {now}"
