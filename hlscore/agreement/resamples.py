"""How well a run's own resamples agree: what noise alone leaves of the agreement."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from hlscore.agreement.kendall import tau_b

MOST_PAIRS = 20
"""Pairs of resamples that are compared; their mean changes little with more."""


def resampled_tau(replicates: Sequence[Sequence[float]]) -> float | None:
    """Mean tau between two resamples of a score.

    Both sides of a pair are noisy, as two runs are. New probes agree less: resamples scatter
    around scores that already hold the noise of these probes.

    Args:
        replicates: Resampled values of each module, all of the same length; the n-th values of
            all modules belong to one resample.

    Returns:
        The mean over up to `MOST_PAIRS` pairs, each resample used once; `None` with fewer than
        two resamples or where they give no order.
    """
    if not replicates:
        return None
    table = np.array([row[: 2 * MOST_PAIRS] for row in replicates], dtype=np.float64)
    pairs = range(0, table.shape[1] - 1, 2)
    found = [tau_b(table[:, at].tolist(), table[:, at + 1].tolist()) for at in pairs]
    known = [tau for tau in found if tau is not None]
    return fmean(known) if known else None
