"""How much two choices have in common."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from hlscore.agreement.kendall import comparable


def jaccard(a: Iterable[Hashable], b: Iterable[Hashable]) -> float:
    """Share of all that is in either set which is in both (Jaccard 1901).

    Args:
        a: One set; what comes twice counts once.

    Returns:
        0 to 1; two empty sets are the same set: 1.
    """
    first, second = frozenset(a), frozenset(b)
    return len(first & second) / len(first | second) if first or second else 1.0


def top_places(values: Sequence[float | None], count: int) -> frozenset[int]:
    """Places of the highest values.

    Args:
        values: One per item; `None` and NaN are never among the highest.
        count: How many to take; fewer where fewer have a value.

    Returns:
        Their places; of equal values the first.
    """
    numbers = np.array(values, dtype=np.float64)
    order = np.argsort(-numbers, kind="stable")[:count]  # NaN sorts last
    return frozenset(order[~np.isnan(numbers[order])].tolist())


def top_overlap(x: Sequence[float | None], y: Sequence[float | None], count: int) -> float | None:
    """Share of the highest values of one list that are among the highest of the other.

    By chance it is `count / n`.

    Args:
        x: Values of the items; pairs with `None` or NaN on either side are left out.
        y: Values of the same items in the same order.

    Returns:
        0 to 1; `None` where there is nothing to choose or one side is constant.
    """
    first, second = comparable(x, y)
    if count < 1 or any(len(np.unique(side)) < 2 for side in (first, second)):
        return None
    a, b = top_places(first.tolist(), count), top_places(second.tolist(), count)
    return len(a & b) / len(a)
