"""Rank correlation and overlap against slow definitions, scipy and simulation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import kendalltau

from hlscore.agreement.measures import jaccard, kendall, top_overlap


def slow_tau(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Tau-b by its definition, over all pairs."""
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    untied = math.prod(sum(1 for sign in signs if sign[side]) for side in (0, 1))
    return float(sum(a * b for a, b in signs)) / math.sqrt(untied) if untied else None


def slow_stderr(x: Sequence[float], y: Sequence[float]) -> float:
    """Jackknife by its definition, one item left out at a time."""
    places = range(len(x))
    kept = [[place for place in places if place != out] for out in places]
    left = np.array([slow_tau([x[i] for i in own], [y[i] for i in own]) for own in kept])
    n = len(left)
    return float(np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum()))


@pytest.mark.parametrize("levels", [2, 3, 8, 10**6])
@pytest.mark.parametrize("n", [2, 3, 7, 30])
def test_tau_and_its_error_follow_their_definitions(n: int, levels: int) -> None:
    draw = np.random.default_rng(n * levels)
    for _ in range(6):
        x, y = (draw.integers(0, levels, n).astype(float).tolist() for _ in range(2))
        found, wanted = kendall(x, y), slow_tau(x, y)
        assert found.n == n
        if wanted is None:
            assert found.tau is found.stderr is found.low is found.high is None
            continue
        assert found.tau == pytest.approx(wanted, abs=1e-12)
        if found.stderr is not None:
            assert found.stderr == pytest.approx(slow_stderr(x, y), abs=1e-12)
            assert found.low == max(-1, found.tau - 1.959963984540054 * found.stderr)
            assert found.high == min(1, found.tau + 1.959963984540054 * found.stderr)


def test_tau_is_that_of_scipy_in_long_lists_with_ties() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=3000)
    for y in (x + draw.normal(size=3000), np.round(x), draw.integers(0, 3, 3000), -x):
        wanted = kendalltau(x, y).statistic
        assert kendall(x.tolist(), y.tolist()).tau == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("n", "correlation"), [(20, 0.0), (42, 0.98), (200, 0.9)])
def test_interval_covers_the_tau_of_the_population(n: int, correlation: float) -> None:
    """For two normal variables it is `2/pi arcsin(correlation)`."""
    draw = np.random.default_rng(1)
    truth = 2 / math.pi * math.asin(correlation)
    covered = 0
    for _ in range(500):
        x = draw.normal(size=n)
        y = correlation * x + math.sqrt(1 - correlation**2) * draw.normal(size=n)
        found = kendall(x.tolist(), y.tolist())
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 500 <= 0.98


@pytest.mark.parametrize(
    ("x", "y", "n", "tau", "stderr"),
    [
        ([], [], 0, None, None),
        ([1.0], [2.0], 1, None, None),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], 3, None, None),
        ([1.0, 2.0], [5.0, 5.0], 2, None, None),
        ([None, math.nan, 3.0], [1.0, 2.0, 3.0], 1, None, None),
        # Pairs without a value are left out.
        ([1, None, 3, 2, math.nan, 6], [10, 20, 40, 30, 50, None], 3, 1.0, 0.0),
        # Leaving one out makes a side constant.
        ([0.0, 0.0, 0.0, 1.0], [1.0, 2.0, 3.0, 4.0], 4, pytest.approx(3 / math.sqrt(3 * 6)), None),
        # Huge and infinite values are ordered too.
        ([-math.inf, -1e308, 1e308, math.inf], [1.0, 2.0, 3.0, 4.0], 4, 1.0, 0.0),
    ],
)
def test_tau_where_values_or_an_order_are_missing(
    x: list[float | None], y: list[float | None], n: int, tau: object, stderr: float | None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = kendall(x, y)
    assert (found.n, found.tau, found.stderr) == (n, tau, stderr)
    assert (found.low is None) == (found.high is None) == (stderr is None)


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="3 values cannot be compared with 2"):
        kendall([1.0, 2.0, 3.0], [1.0, 2.0])


def test_jaccard_is_the_share_of_the_union() -> None:
    for a, b, share in (
        ("abc", "bcd", 0.5),
        ("a", "b", 0),
        ("", "b", 0),
        ("", "", 1),
        ("aa", "a", 1),
    ):
        assert jaccard(a, b) == share


def test_overlap_counts_the_highest_of_both() -> None:
    x = [5.0, 4.0, 3.0, 2.0, 1.0, None]
    y = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0]
    for count, share in ((1, 1), (2, 0.5), (3, pytest.approx(2 / 3)), (50, 1), (0, None)):
        assert top_overlap(x, y, count) == share
    assert top_overlap([3.0, 3.0, 3.0, 1.0], [3.0, 1.0, 1.0, 3.0], 2) == 0.5  # the first of equals
    assert top_overlap(x, [7.0] * 6, 2) is None
    assert top_overlap([], [], 2) is None
