"""What a user typed, as a path."""

from __future__ import annotations

from pathlib import Path


def typed_path(text: str) -> Path:
    """Expand `~` where there is such a home.

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
