"""Rank correlation of two lists of scores, with its uncertainty, in O(n log n)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NORMAL_95 = 1.959963984540054
"""Quantile of the normal distribution: 95 % lie within it on both sides."""

_SIXTEEN_BITS = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAgreement:
    """Kendall's tau-b and how far it may be off.

    The uncertainty is over items: what another draw of items like these would give. It does not
    know that the values themselves are noisy.

    Attributes:
        tau: Tau-b in [-1, 1]; `None` with fewer than two pairs or where one side is constant.
        stderr: Jackknife standard error; `None` with fewer than three pairs or where leaving one
            out makes a side constant.
        low: Lower end of the 95 % interval `tau +- 1.96 stderr`, at least -1; `None` like `stderr`.
        high: Upper end, at most 1.
        n: Pairs that were compared.
    """

    tau: float | None
    stderr: float | None
    low: float | None
    high: float | None
    n: int


def kendall(x: Sequence[float | None], y: Sequence[float | None]) -> RankAgreement:
    """Compare two orders of the same items by Kendall's tau-b (Kendall 1945).

    With `c_i` the concordant minus the discordant pairs of item i, and `a_i` and `b_i` its pairs
    that are not tied in x and in y, `tau = sum c / sqrt(sum a * sum b)`. Leaving item i out takes
    `2 c_i`, `2 a_i` and `2 b_i` off the sums, so that the jackknife (Arvesen 1969, for
    U-statistics) needs nothing else. It is consistent for any joint distribution, unlike the
    usual standard error, which holds where x and y are independent.

    Args:
        x: Values of the items; pairs with `None` or NaN on either side are left out.
        y: Values of the same items in the same order.

    Raises:
        ValueError: The lists differ in length.
    """
    first, second = _ranks(x, y)
    n = len(first)
    if n < 2:
        return RankAgreement(tau=None, stderr=None, low=None, high=None, n=n)
    own = _concordance(first, second)
    a, b = _untied(first), _untied(second)
    tau = _ratio(own.sum(), a.sum(), b.sum())
    if tau is None:
        return RankAgreement(tau=None, stderr=None, low=None, high=None, n=n)
    without = [own.sum() - 2 * own, a.sum() - 2 * a, b.sum() - 2 * b]
    if n < 3 or not (without[1] * without[2]).all():
        return RankAgreement(tau=tau, stderr=None, low=None, high=None, n=n)
    left = without[0] / np.sqrt(without[1] * without[2])
    stderr = math.sqrt((n - 1) / n * float(((left - left.mean()) ** 2).sum()))
    return RankAgreement(
        tau=tau,
        stderr=stderr,
        low=max(-1.0, tau - NORMAL_95 * stderr),
        high=min(1.0, tau + NORMAL_95 * stderr),
        n=n,
    )


def tau_b(x: Sequence[float | None], y: Sequence[float | None]) -> float | None:
    """Kendall's tau-b alone, four times as fast as with its uncertainty.

    Args:
        x: Values of the items; pairs with `None` or NaN on either side are left out.
        y: Values of the same items in the same order.

    Returns:
        Tau-b in [-1, 1]; `None` with fewer than two pairs or where one side is constant.

    Raises:
        ValueError: The lists differ in length.
    """
    first, second = _ranks(x, y)
    n = len(first)
    if n < 2:
        return None
    both = np.unique(first * n + second, return_inverse=True)[1]
    a, b, either = (int(_untied(side).sum()) for side in (first, second, both))
    concordant = 2 * int(_below(first, second).sum())
    discordant = a + b - either - concordant  # all that differ on both sides, but these
    return _ratio(concordant - discordant, a, b)


def comparable(
    x: Sequence[float | None], y: Sequence[float | None]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Leave out the items that lack a value on either side.

    Args:
        x: Values of the items; `None` and NaN are no values.
        y: Values of the same items in the same order.

    Returns:
        The values of both sides, float64 [items that are left] each.

    Raises:
        ValueError: The lists differ in length.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} values cannot be compared with {len(y)}.")
    both = np.array([x, y], dtype=np.float64)  # None becomes NaN
    first, second = both[:, ~np.isnan(both).any(axis=0)]
    return first, second


def _ranks(
    x: Sequence[float | None], y: Sequence[float | None]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ranks of both sides from 0 on, equal ones for equal values, where both have one."""
    first, second = (np.unique(side, return_inverse=True)[1] for side in comparable(x, y))
    return first.astype(np.int64), second.astype(np.int64)


def _ratio(concordance: float, a: float, b: float) -> float | None:
    if not (a and b):
        return None
    return max(-1.0, min(1.0, float(concordance / math.sqrt(a * b))))


def _untied(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Other items whose rank differs, per item, float64 [n]: products exceed 64 bits."""
    return (len(ranks) - np.bincount(ranks)[ranks]).astype(np.float64)


def _concordance(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum over j of sign(x_i - x_j) sign(y_i - y_j), per item, float64 [n]."""
    below = _below(x, y)
    above = _below(x.max() - x, y.max() - y)
    mixed = _below(x, y.max() - y) + _below(x.max() - x, y)
    return (below + above - mixed).astype(np.float64)


def _below(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of items that are smaller in x and in y, per item, int64 [n].

    Items are put in the order of x, of equal x the largest y first, so that an item counts those
    before it with a smaller y. These are found bit by bit: among items that share the higher bits
    of y, one whose next bit is 1 lies above all those whose next bit is 0.
    """
    place = np.lexsort((-y, x))
    # Numbers of 16 bits are sorted several times as fast.
    values: NDArray[Any] = y[place].astype(np.uint16 if len(y) <= _SIXTEEN_BITS else np.int64)
    counts = np.zeros(len(values), dtype=np.int64)
    order = np.arange(len(values))
    for bit in reversed(range(int(values.max()).bit_length())):
        sorted_values = values[order]
        one = (sorted_values >> bit & 1).astype(np.int64)
        before = np.cumsum(1 - one) - (1 - one)
        counts[order] += one * (before - before[_starts(sorted_values >> (bit + 1))])
        order = order[np.argsort(sorted_values >> bit, kind="stable")]
    found = np.empty_like(counts)
    found[place] = counts
    return found


def _starts(groups: NDArray[Any]) -> NDArray[np.int64]:
    """Place where the group of each item begins, int64 [n]; groups stand together."""
    places = np.arange(len(groups))
    places[1:][groups[1:] == groups[:-1]] = 0
    return np.maximum.accumulate(places)
