"""Resamples of the probe groups, and what a module's scores are in each.

Groups are drawn with replacement within each half. The draws are the same for every module,
which keeps their dependence and lets a whole choice be repeated per resample. How far a score
follows a group is measured by leaving that group out (see `jackknife`): a replicate is the score
plus the influence of every group times how often it was drawn beyond once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hlscore.gradients.jackknife import Influence


@dataclass(frozen=True, slots=True, kw_only=True)
class Resamples:
    """How often each group of both halves is drawn in each resample.

    Attributes:
        first: float64 [resamples, groups].
        second: float64 [resamples, groups].
        first_counts: What each group adds to the divisor of its half's mean, float64 [groups].
        second_counts: float64 [groups].
    """

    first: torch.Tensor
    second: torch.Tensor
    first_counts: torch.Tensor
    second_counts: torch.Tensor

    @property
    def count(self) -> int:
        """Number of resamples."""
        return self.first.shape[0]

    def replicates(self, value: float, influence: Influence) -> torch.Tensor:
        """A score in each resample, float64 [resamples]; the variance is that of the influence."""
        first = (self.first - 1) @ influence.first
        return value + first + (self.second - 1) @ influence.second


def draw_resamples(
    first_counts: Sequence[int], second_counts: Sequence[int], *, count: int, seed: int
) -> Resamples | None:
    """Draw groups; `None` where no resamples were asked for or a half has a single group."""
    if count == 0 or min(len(first_counts), len(second_counts)) < 2:
        return None
    generator = np.random.default_rng(seed)
    draws = [
        torch.from_numpy(
            generator.multinomial(len(half), np.full(len(half), 1 / len(half)), size=count)
        ).double()
        for half in (first_counts, second_counts)
    ]
    return Resamples(
        first=draws[0],
        second=draws[1],
        first_counts=torch.tensor(first_counts, dtype=torch.float64),
        second_counts=torch.tensor(second_counts, dtype=torch.float64),
    )
