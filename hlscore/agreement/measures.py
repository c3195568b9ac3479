"""How far two lists of values agree: Kendall's tau with its interval, overlap of the highest."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float | None]

NORMAL_95 = 1.959963984540054
"""Quantile of the normal distribution: 95 % lie within it on both sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAgreement:
    """Kendall's tau-b and how far it may be off.

    The uncertainty is over items: what another draw of items like these would give. It does not
    know that the values themselves are noisy.
    """

    # In [-1, 1]; `None` with fewer than two pairs or where one side is constant.
    tau: float | None = None
    # Jackknife standard error; `None` with fewer than three pairs or where leaving one out makes a
    # side constant.
    stderr: float | None = None
    low: float | None = None  # 95 % interval `tau +- 1.96 stderr` within [-1, 1]
    high: float | None = None
    n: int  # pairs that were compared


def kendall(x: Values, y: Values) -> RankAgreement:
    """Kendall's tau-b of two orders of the same items (Kendall 1945), in O(n log^2 n).

    With `c_i` the concordant minus the discordant pairs of item i, and `a_i` and `b_i` its pairs
    that are not tied in x and in y, `tau = sum c / sqrt(sum a * sum b)`. Leaving item i out takes
    `2 c_i`, `2 a_i` and `2 b_i` off the sums, so that the jackknife (Arvesen 1969, for
    U-statistics) needs nothing else. It is consistent for any joint distribution, unlike the
    usual standard error, which holds where x and y are independent. Pairs with `None` or NaN on
    either side are left out.
    """
    ranks = [np.unique(side, return_inverse=True)[1] for side in _comparable(x, y)]
    n = len(ranks[0])
    if n < 2:
        return RankAgreement(n=n)
    # As float64: products exceed 64 bits.
    c = _concordance(*ranks).astype(np.float64)
    a, b = ((n - np.bincount(side)[side]).astype(np.float64) for side in ranks)
    if not (a.any() and b.any()):
        return RankAgreement(n=n)
    tau = max(-1.0, min(1.0, float(c.sum() / math.sqrt(a.sum() * b.sum()))))
    without = (a.sum() - 2 * a) * (b.sum() - 2 * b)
    if n < 3 or not without.all():
        return RankAgreement(tau=tau, n=n)
    left = (c.sum() - 2 * c) / np.sqrt(without)
    stderr = math.sqrt((n - 1) / n * float(((left - left.mean()) ** 2).sum()))
    return RankAgreement(
        tau=tau,
        stderr=stderr,
        low=max(-1.0, tau - NORMAL_95 * stderr),
        high=min(1.0, tau + NORMAL_95 * stderr),
        n=n,
    )


def _comparable(x: Values, y: Values) -> NDArray[np.float64]:
    """The values of both sides, float64 [2, items that have a value on both]."""
    if len(x) != len(y):
        raise ValueError(f"{len(x)} values cannot be compared with {len(y)}.")
    both = np.array([x, y], dtype=np.float64)  # None becomes NaN
    return both[:, ~np.isnan(both).any(axis=0)]


def _concordance(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum over j of sign(x_i - x_j) sign(y_i - y_j), per item, int64 [n].

    The items that are smaller on both sides say it all: of the others only the numbers of smaller
    and equal ones on either side are needed.
    """
    n = len(x)
    (less_x, same_x), (less_y, same_y) = _counts(x), _counts(y)
    (less_xy, same), (less_yx, _) = _counts(x * n + y), _counts(y * n + x)
    smaller = 2 * _smaller_on_both(x, y) + less_xy + less_yx - 2 * (less_x + less_y)
    found: NDArray[np.int64] = 2 * smaller + n - same_x - same_y + same
    return found


def _counts(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of items with a smaller and with an equal key, itself included, per item."""
    _, place, equal = np.unique(keys, return_inverse=True, return_counts=True)
    return (np.cumsum(equal) - equal)[place], equal[place]


def _smaller_on_both(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of items that are smaller in x and in y, per item, int64 [n].

    Items come in the order of x, of equal x the largest y first: those with a smaller y that came
    before are smaller on both sides.
    """
    found, before = np.zeros(len(x), dtype=np.int64), list[int]()
    for place in np.lexsort((-y, x)).tolist():
        value = int(y[place])
        found[place] = bisect_left(before, value)
        insort(before, value)
    return found


def resampled_tau(replicates: Sequence[Sequence[float]]) -> float | None:
    """Mean tau between two resamples of a score: what noise alone leaves of the agreement.

    Both sides of a pair are noisy, as two runs are. New probes agree less: resamples scatter
    around scores that already hold the noise of these probes. It is the mean over disjoint pairs
    of the first 40, which changes little with more; `None` with fewer than two resamples or where
    they give no order.

    Args:
        replicates: Resamples of each module; the n-th values of all modules belong together.
    """
    columns = list(zip(*(row[:40] for row in replicates), strict=True))
    taus = [kendall(*columns[at : at + 2]).tau for at in range(0, len(columns) - 1, 2)]
    known = [tau for tau in taus if tau is not None]
    return fmean(known) if known else None


def jaccard(a: Iterable[Hashable], b: Iterable[Hashable]) -> float:
    """Share of all that is in either set which is in both (Jaccard 1901); of empty sets 1."""
    first, second = frozenset(a), frozenset(b)
    return len(first & second) / len(first | second) if first or second else 1.0


def top_overlap(x: Values, y: Values, count: int) -> float | None:
    """Share of the highest values of one list that are among the highest of the other.

    By chance it is `count / n`.

    Of equal values the first are the highest; pairs with `None` or NaN on either side are left
    out. `None` where there is nothing to choose or one side is constant.
    """
    sides = _comparable(x, y)
    if count < 1 or any(len(np.unique(side)) < 2 for side in sides):
        return None
    first, second = (set(np.argsort(-side, kind="stable")[:count].tolist()) for side in sides)
    return len(first & second) / len(first)
