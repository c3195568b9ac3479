"""From one weight of a model to the scores that need no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hlscore.errors import ModelError
from hlscore.records import Candidate, WeightStatistics
from hlscore.scores.weight_spectrum import (
    NO_CONVERGENCE,
    NOT_FINITE,
    NOT_THERE,
    weight_statistics,
)
from hlscore.weights.singular_values import singular_values


@torch.no_grad()
def measure_weight(
    weight: torch.Tensor | None,
    item: Candidate,
    ranks: Sequence[int],
    device: torch.device,
) -> WeightStatistics:
    """Decompose one weight, matrix by matrix, and score it.

    Args:
        weight: The weight, of any floating dtype and on any device; `None` where it cannot be had.
    """
    if weight is None or not bool(torch.isfinite(weight).all()):
        return WeightStatistics(remark=NOT_THERE if weight is None else NOT_FINITE)
    values = []
    for matrix in weight.detach().reshape(-1, *weight.shape[-2:]):
        try:
            values.append(singular_values(matrix, device))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return WeightStatistics(remark=NO_CONVERGENCE)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{device} ran out of memory while it decomposed {item.module}.",
                hint="Use --device cpu, or leave it out with --exclude.",
            ) from error
    return weight_statistics(np.stack(values), (item.out_features, item.in_features), ranks)
