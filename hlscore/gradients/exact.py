"""Exact estimator: float32 sums of every gradient, one per half, and small group sketches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hlscore.gradients.groups import GroupSketches
from hlscore.gradients.half_sums import HALVES, HalfSums
from hlscore.gradients.sketch import TestMatrices
from hlscore.records import Candidate

_SUM = "sum:"


class ExactGradients(HalfSums):
    """Accumulates gradients in float32, two sums per weight.

    Args:
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
        super().__init__(item.module for item in candidates)
        self.groups = GroupSketches(groups)
        self._tests = tests
        self._on_host = on_host

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Add one gradient of the current batch.

        Args:
            gradient: In the layout of the weight, any floating dtype.
        """
        if self._on_host:
            gradient = gradient.cpu()
        key = f"{HALVES[self._half]}:{name}"
        if key in self.sums:
            total = self.sums[key] = self.sums[key].to(gradient.device)
            total.add_(gradient.reshape(total.shape), alpha=self._scale)
        else:
            stack = gradient.reshape(-1, *gradient.shape[-2:])
            self.sums[key] = stack.to(torch.float32, copy=True).mul_(self._scale)

    def end_group(self, half: int, group: int) -> None:
        """Close a group of examples.

        Args:
            group: Its number, those of the first half first.
        """
        if self.groups.kept:
            for name, total in self.totals(half).items():
                self.groups.end(name, group, self._tests.compress(total))

    def means(self, name: str, counts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Mean gradients of both halves, in the layout of the weight; forgets their sums.

        Args:
            counts: What the sum of each half is divided by.

        Returns:
            Two float32 tensors [E, p, q]; `None` when nothing ever reached the module.
        """
        halves = self.both(name)
        super().forget(name)
        return None if halves is None else (halves[0].div_(counts[0]), halves[1].div_(counts[1]))

    def forget(self, name: str) -> None:
        """Release what is held for a module."""
        super().forget(name)
        self.groups.forget(name)

    def linear_state(self) -> dict[str, torch.Tensor]:
        """Everything that grows: linear in the probes."""
        return self.groups.state() | {f"{_SUM}{key}": value for key, value in self.sums.items()}

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that is needed to go on, by name."""
        return self.linear_state()

    def load(self, state: Mapping[str, torch.Tensor], *, number: int = 1) -> None:  # noqa: ARG002
        """Take over a state, or a part of one; there is one pass."""
        self.groups.load(state)
        for key, value in state.items():
            if key.startswith(_SUM):
                self.sums[key.removeprefix(_SUM)] = value
