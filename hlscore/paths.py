"""What a user typed, as a path, and the files of unfinished runs; needs no torch."""

from __future__ import annotations

from pathlib import Path

PROGRESS_PREFIX = ".hlscore-progress"


def typed_path(text: str) -> Path:
    """Expand `~` where there is such a home.

    Args:
        text: As typed.

    Returns:
        The path; of a home that does not exist, the text as it is.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def existing_path(text: str) -> Path | None:
    """Find a file or directory.

    Args:
        text: As typed; may be far too long for a path.

    Returns:
        The path, or `None` when there is nothing at it.
    """
    path = typed_path(text)
    try:
        return path if path.exists() else None
    except (OSError, ValueError):
        return None


def unfinished_runs(folder: Path) -> bool:
    """Whether a folder holds the progress of a run that did not end."""
    return folder.is_dir() and any(folder.glob(f"{PROGRESS_PREFIX}-*.safetensors"))


def remove_unfinished(folder: Path) -> None:
    """Remove every stored progress from a folder."""
    for path in folder.glob(f"{PROGRESS_PREFIX}-*"):
        path.unlink(missing_ok=True)
