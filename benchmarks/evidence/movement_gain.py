"""What the part of a trial's update that LoRA cannot follow would gain, to first order, in nats.

`hls` measures how large that part is, not whether it matters. Its product with the gradient says
by how much the loss would fall: -1/2 [<g_B, A - A_r> + <g_A, B - B_r>], with A and B the mean
updates and g_A and g_B the gradients of the two halves, each half's tail held against the other
half's gradient. `movement.py --part gains` trains the modules that it chooses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from study import PROBES, RANK, scored
from trials import Study

from hlscore.gradients import run as capture
from hlscore.planning.problem import GATED_PAIRS

Halves = tuple[torch.Tensor, torch.Tensor]


@contextmanager
def kept_means() -> Iterator[dict[str, Halves]]:
    """Keep the mean gradients or updates of both halves of every module that a run reduces."""
    means: dict[str, Halves] = {}
    reduce = capture.reduce_gradients

    def keep(halves: Any, *given: Any, name: str, **options: Any) -> Any:
        first, second = (half.detach().double().clone().flatten(0, -2) for half in halves)
        means[name] = first, second
        return reduce(halves, *given, name=name, **options)

    with patch.object(capture, "reduce_gradients", keep):
        yield means


def tail(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """What the best approximation of a rank leaves of a matrix."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return matrix - (left[:, :rank] * values[:rank]) @ right[:rank]


def cross_fitted_tail(a: torch.Tensor, b: torch.Tensor, rank: int) -> float:
    """`1/2 [<A - A_r, B> + <B - B_r, A>]` from whole decompositions."""
    return 0.5 * float((tail(a, rank) * b).sum() + (tail(b, rank) * a).sum())


def gains_and_hls(study: Study) -> tuple[dict[str, float], dict[str, float]]:
    """First-order gain of the tails in nats per counted token, and `hls` of trials, by module."""
    means = {}
    for movement, options in (("trial", {"trial_steps": 8}), ("gradient", {})):
        with kept_means() as found:
            scored(study, study.model(), PROBES, movement=movement, weight_scores=False, **options)
        means[movement] = found
    gains, hls = {}, {}
    for name, (a, b) in means["trial"].items():
        of_a, of_b = means["gradient"][name]
        gain = (of_b * tail(a, RANK)).sum() + (of_a * tail(b, RANK)).sum()
        gains[name], hls[name] = -0.5 * float(gain), cross_fitted_tail(a, b, RANK)
    return gains, hls


def best(values: Mapping[str, float], count: int) -> list[str]:
    """The modules of the largest values, of a gated pair only one."""
    taken: dict[str, str] = {}
    for name in sorted(values, key=lambda name: -values[name]):
        parent, _, kind = name.rpartition(".")
        pair = next((kinds[0] for kinds in GATED_PAIRS.items() if kind in kinds), kind)
        taken.setdefault(f"{parent}.{pair}", name)
    return list(taken.values())[:count]
