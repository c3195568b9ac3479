"""Short names for files that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def short_labels(paths: Sequence[Path]) -> list[str]:
    """Name files by the parts of their paths that set them apart.

    Args:
        paths: The files; one may come twice.

    Returns:
        One label per file, no two the same.
    """
    parts = [path.absolute().parts for path in paths]
    least = min(len(own) for own in parts)
    first = 0
    while first < least - 1 and len({own[first] for own in parts}) == 1:
        first += 1
    last = 0
    while last < least - first - 1 and len({own[-1 - last] for own in parts}) == 1:
        last += 1
    labels = ["/".join(own[first : len(own) - last]) for own in parts]
    return [
        label if labels.count(label) == 1 else f"{label} ({labels[: place + 1].count(label)})"
        for place, label in enumerate(labels)
    ]
