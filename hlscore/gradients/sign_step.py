"""The first step of Adam, and what of it LoRA of a rank leaves over.

Without momentum Adam's first step is `-eta sign(G)`, which lowers the loss by `eta ||G||_1`. The
best approximation of that step of rank r, `P_r(sign G)`, lowers it by `eta <G, P_r(sign G)>`.
Entries of `G` below the float32 rounding of the largest one of their matrix have no sign: they
are noise, and Adam's epsilon keeps them from a full step too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hlscore.gradients.sketch import short_first
from hlscore.gradients.tails import (
    ROUNDING,
    chooses_full,
    full_spectrum,
    randomized_spectrum,
)


def sign_step_curve(
    gradients: torch.Tensor, ranks: Sequence[int], *, method: str, seed: int
) -> tuple[float, ...]:
    """What each rank leaves over of a step along the signs, summed over matrices.

    `||G||_1 - <G, P_r(sign G)>`; below zero where the step of rank r gains more than that of the
    signs, whose entries it may exceed where the gradient is large. Signs have a flat
    spectrum: a randomized decomposition captures too little of it, and the value is then off by
    0.1 % at a small rank and by 2 % at the largest one. Where singular
    values of `sign G` are equal, `P_r` is any of the best approximations.

    Args:
        gradients: Mean gradients `G`, [E, p, q].

    Returns:
        Loss per unit step at each rank; zero where the rank spans the whole matrix.
    """
    mean = short_first(gradients)
    noise = torch.finfo(torch.float32).eps * mean.abs().amax((-2, -1), keepdim=True)
    signs, short = torch.where(mean.abs() > noise, torch.sign(mean), 0.0), mean.shape[-2]
    whole = mean.abs().sum(dtype=torch.float64)
    if chooses_full(short, max(ranks), method):
        wide = signs.double()
        basis = full_spectrum(wide @ wide.mT).basis
        reached = (basis * (wide @ (mean.double().mT @ basis))).sum(-2)
    else:
        leading = randomized_spectrum(signs, max(ranks), seed=seed).basis.float().mT
        reached = ((leading @ signs).double() * (leading @ mean).double()).sum(-1)
    left = [float(whole - reached[:, :rank].sum()) for rank in ranks]
    return tuple(
        value if rank < short and abs(value) > ROUNDING * float(whole) else 0.0
        for rank, value in zip(ranks, left, strict=True)
    )
