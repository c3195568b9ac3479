"""The search for an arm's learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from hlscore.settings import FACTORS

MOST_EXTENSIONS = 5
"""The suggested rates suit large models; a small one can want some hundred times as much."""


def search(loss_at: Callable[[float], float]) -> dict[float, float]:
    """Try factors of the suggested rates, and more where the best lies at an edge.

    Args:
        loss_at: Trains with rates multiplied by a factor and gives the tuning loss.

    Returns:
        The loss of each factor that was tried; infinite where it diverged.
    """
    found = {factor: _finite(loss_at(factor)) for factor in FACTORS}
    for _ in range(MOST_EXTENSIONS):
        factor = best(found)
        if factor == max(found):
            beyond = factor * 3
        elif factor == min(found):
            beyond = factor / 3
        else:
            break
        found[beyond] = _finite(loss_at(beyond))
    return found


def best(losses: Mapping[float, float]) -> float:
    """The factor of the lowest loss; the smallest of equals."""
    return min(sorted(losses), key=lambda factor: losses[factor])


def at_edge(losses: Mapping[float, float]) -> bool:
    """Whether the best factor is the last one that was tried."""
    return best(losses) in (min(losses), max(losses))


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
