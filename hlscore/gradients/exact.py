"""Exact estimator: float32 sums of every gradient, one per half, and small group sketches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from hlscore.gradients.sketch import draw_omega, sketch


def group_sketch_size(rank: int) -> int:
    """Columns of a group sketch: 4r up to 128, then 2r, which loses more of the spread."""
    return max(64, min(4 * rank, 128), 2 * rank)


@dataclass(slots=True)
class HalfSum:
    """Running sum over one half for one weight.

    Attributes:
        total: Sum of token-loss gradients, float32 [E, p, q] in the layout of the weight.
        groups: Sketch of each finished group, float32 [E, min(p, q), k] each.
        seen: Sketch of the sum when the last group ended.
    """

    total: torch.Tensor
    groups: list[torch.Tensor] = field(default_factory=list)
    seen: torch.Tensor | None = None


class ExactGradients:
    """Accumulates gradients in float32, two sums per weight.

    A group's sketch is the sketch of the sum at its end less that at its start: sketches are
    linear, so no third sum is needed.

    Args:
        parameters: Weight parameter of each module, by module name.
        seed: Seed of the group sketches.
        sketch_size: Columns of the group sketches that the bootstrap needs; 0 for none.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], *, seed: int, sketch_size: int
    ) -> None:
        self._sums = {
            name: (_empty_sum(parameter), _empty_sum(parameter))
            for name, parameter in parameters.items()
        }
        self._half = 0
        self._scale = 1.0
        self._bad: dict[str, torch.Tensor] = {}
        self._seed = seed
        self._sketch_size = sketch_size

    def begin_batch(self, half: int, scale: float) -> None:
        """Say which half the next gradients belong to, and what they are multiplied with."""
        self._half, self._scale = half, scale

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Add one gradient of the current batch.

        Args:
            name: Module name.
            gradient: In the layout of the weight, any floating dtype.
        """
        # One reduction finds NaN and infinity; reading it is left to `take_bad`, which waits
        # for the device once per batch instead of once per weight.
        self._bad[name] = gradient.sum(dtype=torch.float32)
        total = self._sums[name][self._half].total
        total.add_(gradient.reshape(total.shape), alpha=self._scale)

    def take_bad(self) -> str | None:
        """Name a module whose gradient in the last batch held NaN or infinity, if any."""
        names, self._bad = self._bad, {}
        if not names:
            return None
        by_device: dict[torch.device, list[str]] = {}
        for name, value in names.items():
            by_device.setdefault(value.device, []).append(name)
        for group in by_device.values():
            finite = torch.isfinite(torch.stack([names[name] for name in group])).tolist()
            for name, good in zip(group, finite, strict=True):
                if not good:
                    return name
        return None

    def end_group(self) -> None:
        """Close a group of examples of the current half."""
        if not self._sketch_size:
            return
        for name, halves in self._sums.items():
            half = halves[self._half]
            width = max(half.total.shape[-2:])
            omega = draw_omega(
                name, seed=self._seed, width=width, size=self._sketch_size, device=half.total.device
            )
            now = sketch(half.total, omega)
            half.groups.append(now if half.seen is None else now - half.seen)
            half.seen = now

    def means(self, name: str, tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the mean gradients of both halves, and forget their sums.

        Args:
            name: Module name.
            tokens: Counted tokens of each half.

        Returns:
            Two float32 tensors [E, p, q], in the layout of the weight.
        """
        first, second = self._sums[name]
        return first.total.div_(tokens[0]), second.total.div_(tokens[1])

    def group_sketches(self, name: str) -> torch.Tensor | None:
        """Give the sketches of all groups, first half first: float32 [g, E, m, k]."""
        first, second = self._sums[name]
        groups = [*first.groups, *second.groups]
        return torch.stack(groups) if groups else None

    def forget(self, name: str) -> None:
        """Release what is held for a module."""
        del self._sums[name]


def exact_bytes(shapes: Sequence[tuple[int, int, int]], *, groups: int, sketch_size: int) -> int:
    """Memory that the exact estimator holds.

    Args:
        shapes: (matrices, out, in) of each weight.
        groups: Group sketches per weight, 0 without bootstrap.
        sketch_size: Columns of a group sketch.

    Returns:
        Bytes of two float32 sums per weight, and of the group sketches.
    """
    total = 0
    for matrices, rows, columns in shapes:
        short, width = min(rows, columns), max(rows, columns)
        size = min(sketch_size, width)
        total += 4 * matrices * (2 * rows * columns + (groups + 2 if groups else 0) * short * size)
    return total


def _empty_sum(parameter: nn.Parameter) -> HalfSum:
    shape = (-1, *parameter.shape[-2:])
    return HalfSum(total=torch.zeros_like(parameter, dtype=torch.float32).reshape(shape))
