"""Exact estimator: float32 sums of every gradient, one per half, and small group sketches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hlscore.gradients.groups import GroupSketches
from hlscore.gradients.products import HALVES
from hlscore.gradients.sketch import TestMatrices
from hlscore.records import Candidate

_SUM = "sum:"


class ExactGradients:
    """Accumulates gradients in float32, two sums per weight.

    Args:
        candidates: Modules to capture.
        tests: Test matrices of the group sketches.
        groups: Probe groups of each half; `None` keeps no group sketches.
        on_host: Keep the sums in the memory of the host instead of that of the device.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        tests: TestMatrices,
        *,
        groups: tuple[int, int] | None,
        on_host: bool = False,
    ) -> None:
        self._items = {item.module: item for item in candidates}
        self._tests = tests
        self._groups = GroupSketches(groups) if groups else None
        self._on_host = on_host
        self._sums: dict[str, torch.Tensor] = {}
        self._half = 0
        self._scale = 1.0

    def begin_batch(self, half: int, scale: float) -> None:
        """Say which half the next gradients belong to, and what they are multiplied with."""
        self._half, self._scale = half, scale

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Add one gradient of the current batch.

        Args:
            gradient: In the layout of the weight, any floating dtype.
        """
        if self._on_host:
            gradient = gradient.cpu()
        key = f"{HALVES[self._half]}:{name}"
        if key in self._sums:
            total = self._sums[key] = self._sums[key].to(gradient.device)
            total.add_(gradient.reshape(total.shape), alpha=self._scale)
        else:
            stack = gradient.reshape(-1, *gradient.shape[-2:])
            self._sums[key] = stack.to(torch.float32, copy=True).mul_(self._scale)

    def captured(self) -> tuple[str, ...]:
        """Names of the captured modules."""
        return tuple(self._items)

    def end_group(self, half: int, group: int) -> None:
        """Close a group of examples.

        Args:
            group: Its number, those of the first half first.
        """
        if self._groups is None:
            return
        for name, total in self.totals(half).items():
            self._groups.end(name, group, self._tests.compress(total))

    def means(self, name: str, counts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Give the mean gradients of both halves, and forget their sums.

        Args:
            counts: What the sum of each half is divided by.

        Returns:
            Two float32 tensors [E, p, q], in the layout of the weight; `None` when nothing ever
            reached the module.
        """
        first, second = (self._sums.pop(f"{half}:{name}", None) for half in HALVES)
        present = second if first is None else first
        if present is None:
            return None
        first = torch.zeros_like(present) if first is None else first
        second = torch.zeros_like(present) if second is None else second
        return first.div_(counts[0]), second.div_(counts[1])

    def group_sketches(self, name: str) -> torch.Tensor | None:
        """Give the sketches of all groups, first half first: float32 [g, e, p, k]."""
        return None if self._groups is None else self._groups.of(name)

    def forget(self, name: str) -> None:
        """Release what is held for a module."""
        for half in HALVES:
            self._sums.pop(f"{half}:{name}", None)
        if self._groups is not None:
            self._groups.forget(name)

    def sums(self) -> dict[str, torch.Tensor]:
        """Everything that grows: linear in the probes."""
        groups = {} if self._groups is None else self._groups.state()
        return groups | {f"{_SUM}{key}": value for key, value in self._sums.items()}

    def totals(self, half: int) -> dict[str, torch.Tensor]:
        """The sums of a half, by module name."""
        found = {name: self._sums.get(f"{HALVES[half]}:{name}") for name in self._items}
        return {name: total for name, total in found.items() if total is not None}

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that is needed to go on, by name."""
        return self.sums()

    def load(self, state: Mapping[str, torch.Tensor], *, number: int = 1) -> None:  # noqa: ARG002
        """Take a state, or a part of one, over.

        Args:
            number: Pass that it belongs to; there is one.
        """
        if self._groups is not None:
            self._groups.load(state)
        for key, value in state.items():
            if key.startswith(_SUM):
                self._sums[key.removeprefix(_SUM)] = value
