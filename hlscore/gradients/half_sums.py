"""One float32 sum per half of the probes and module: what every estimator accumulates."""

from __future__ import annotations

from collections.abc import Iterable

import torch

HALVES = ("first", "second")


class HalfSums:
    """Sums of both halves of the modules that are captured.

    Attributes:
        captured: Names of the modules.
        sums: The sums, by half and module name, such as `first:model.layers.0.mlp.up_proj`.
    """

    def __init__(self, captured: Iterable[str]) -> None:
        self.captured = tuple(captured)
        self.sums: dict[str, torch.Tensor] = {}
        self._half = 0
        self._scale = 1.0

    def begin_batch(self, half: int, scale: float) -> None:
        """Set the half that the next gradients belong to, and what they are multiplied with."""
        self._half, self._scale = half, scale

    def half(self, name: str, half: int) -> torch.Tensor | None:
        """The sum of a half; `None` where nothing arrived."""
        return self.sums.get(f"{HALVES[half]}:{name}")

    def both(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The sums of both halves, zeros where nothing arrived; `None` where both are empty."""
        first, second = self.half(name, 0), self.half(name, 1)
        if first is None:
            return None if second is None else (torch.zeros_like(second), second)
        return first, torch.zeros_like(first) if second is None else second

    def totals(self, half: int) -> dict[str, torch.Tensor]:
        """The sums of a half, by module name."""
        found = {name: self.half(name, half) for name in self.captured}
        return {name: total for name, total in found.items() if total is not None}

    def forget(self, name: str) -> None:
        """Release what is held for a module."""
        for half in HALVES:
            self.sums.pop(f"{half}:{name}", None)
