"""Writing results so that nothing half-written ever has a final name."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from hlscore.errors import ArtifactError, UsageError
from hlscore.paths import existing_path
from hlscore.unfinished import STAGE_PREFIX

SCORES_FILE = "scores.parquet"
PLAN_FILE = "plan.json"
ROLLOUTS_FILE = "rollouts.jsonl"
VALIDATION_FILE = "validation.json"
# Completions of a run that failed: not beside the scores of another run under their name.
UNSCORED_FILE = "unscored-rollouts.jsonl"

_LONGEST_NAME = 100


def default_folder(model: str) -> Path:
    """Folder for the results of a model without `--out`: `hlscore-out/<model>`."""
    local = existing_path(model)
    name = local.resolve().name if local is not None and local.is_dir() else model
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return Path("hlscore-out") / (plain[:_LONGEST_NAME] or "model")


def check_file(path: Path, *, hint: str) -> None:
    """Refuse a path that is no file."""
    if not path.is_file():
        what = f"'{path}' is a directory" if path.is_dir() else f"There is no file '{path}'"
        raise ArtifactError(f"{what}.", hint=hint)


def first_bytes(path: Path, *, hint: str = "") -> bytes:
    """The start of a file's text, without what may stand before a value of JSON."""
    return read_bytes(path, most=256, hint=hint).lstrip(b"\xef\xbb\xbf \t\r\n")


def read_bytes(path: Path, most: int, *, hint: str = "") -> bytes:
    """The content of a file, of a larger one only its first `most` bytes."""
    check_file(path, hint=hint)
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise ArtifactError(f"'{path}' cannot be read: {error.strerror}.") from error


def check_folder(folder: Path, names: tuple[str, ...], *, force: bool) -> None:
    """Refuse a folder that cannot take the results, before any work is done."""
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--out '{folder}' is a file.", hint="Give a directory.")
        for path in (folder / name for name in names):
            if path.is_dir():
                raise UsageError(
                    f"'{path}' is a directory.",
                    hint="A file goes there: give another path with --out.",
                )
            if path.exists() and not force:
                raise UsageError(
                    f"'{path}' already exists.",
                    hint="Pass --force (in Python force=True) to replace it, or give another path.",
                )
        parent = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryDirectory(prefix=STAGE_PREFIX, dir=parent):
            pass
    except OSError as error:
        raise ArtifactError(
            f"'{folder}' cannot be written to: {error.strerror}.", hint="Choose another --out."
        ) from error


def write_files(
    folder: Path, contents: Mapping[str, str | Callable[[Path], object]]
) -> dict[str, Path]:
    """Write texts, or what functions write to a path, beside their final place, then move all.

    Returns:
        The final path of each file.
    """
    stage: Path | None = None
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=STAGE_PREFIX, dir=folder))
        for name, content in contents.items():
            if isinstance(content, str):
                (stage / name).write_bytes(content.encode())
            else:
                content(stage / name)
        for name in contents:
            (stage / name).replace(folder / name)
    except OSError as error:
        raise ArtifactError(
            f"Results cannot be written to '{folder}': {error.strerror or error}.",
            hint="Choose another --out.",
        ) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return {name: folder / name for name in contents}
