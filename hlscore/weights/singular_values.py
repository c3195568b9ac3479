"""Singular values of matrices of any size, in float64 and without a float64 copy of the whole."""

from __future__ import annotations

import torch

from hlscore.records import Candidate
from hlscore.scores.weight_spectrum import Values

_ROWS_PER_STEP = 4


def singular_values(matrix: torch.Tensor, device: torch.device) -> Values:
    """Decompose one matrix.

    The long side is reduced first, by QR decompositions of a few rows at a time, each stacked
    below the triangle of those before. That keeps every digit that a direct decomposition has,
    unlike the Gram matrix, whose condition number is the square.

    Args:
        matrix: Finite numbers of any floating dtype, [p, q].
        device: Where to compute; Apple GPUs, which have no float64, pass it on to the CPU.

    Returns:
        All singular values, the largest first, float64 [min(p, q)].
    """
    place = torch.device("cpu") if device.type == "mps" else device
    rows = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    short = rows.shape[1]
    square = torch.empty(0, short, dtype=torch.float64, device=place)
    for part in torch.split(rows, _ROWS_PER_STEP * short):
        stacked = torch.cat([square, part.to(device=place, dtype=torch.float64)])
        tall = stacked.shape[0] > short
        square = torch.linalg.qr(stacked, mode="r").R if tall else stacked
    found: Values = torch.linalg.svdvals(square).cpu().numpy()
    return found


def decomposition_bytes(item: Candidate) -> int:
    """Memory that decomposing one matrix takes besides the weight, an estimate."""
    short, long = sorted((item.out_features, item.in_features))
    rows = min(long, _ROWS_PER_STEP * short) + short
    # Stacked rows, the copy that is factored, and what the factorization works with.
    return 8 * 3 * rows * short
