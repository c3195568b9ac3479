"""What a user typed, as a path."""

from __future__ import annotations

from pathlib import Path


def typed_path(text: str) -> Path:
    """Expand `~` where there is such a home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def existing_path(text: str) -> Path | None:
    """Find a file or directory; `None` for a text that is no path, or far too long for one."""
    path = typed_path(text)
    try:
        return path if path.exists() else None
    except (OSError, ValueError):
        return None
