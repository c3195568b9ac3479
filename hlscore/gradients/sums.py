"""What a run accumulates: float32 sums of both halves of the probes, and small group sketches.

Sums of gradients are the exact estimator; `sketched` adds up thin products instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hlscore.gradients.sketch import TestMatrices, fold_rows, folded_rows
from hlscore.records import Candidate

# Standard errors need no more digits than this holds.
_GROUP_DTYPE = torch.bfloat16
# Standard errors of fused experts come from this many of them, scaled up by energy.
SAMPLED_MATRICES = 16
# Names of the sums of both halves.
HALVES = ("first", "second")


class HalfSums:
    """Sums of both halves of the probes, and a folded sketch of every finished group.

    A group's sketch is the sketch of its half's sum at its end less that at its start: sketches
    are linear, so no sum per group is needed.

    Args:
        groups: Probe groups of each half; `None` keeps no group sketches.

    Attributes:
        tensors: Everything that is kept, by kind and module name, such as
            `first:model.layers.0.mlp.up_proj` and `groups:model.layers.0.mlp.up_proj`.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        tests: TestMatrices,
        *,
        groups: tuple[int, int] | None,
        on_host: bool = False,
    ) -> None:
        self.captured = tuple(item.module for item in candidates)
        self.tensors: dict[str, torch.Tensor] = {}
        self._tests, self._groups, self._on_host = tests, groups, on_host
        # Modules whose sums are sketches already.
        self._sketched: frozenset[str] = frozenset()
        self._half, self._scale = 0, 1.0

    def begin_batch(self, half: int, scale: float) -> None:
        """Set the half that the next gradients belong to, and what they are multiplied with."""
        self._half, self._scale = half, scale

    def totals(self, half: int) -> dict[str, torch.Tensor]:
        """The sums of a half, by module name."""
        keys = {name: f"{HALVES[half]}:{name}" for name in self.captured}
        return {name: self.tensors[key] for name, key in keys.items() if key in self.tensors}

    def both(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The sums of both halves, zeros where nothing arrived; `None` where both are empty."""
        first, second = (self.tensors.get(f"{half}:{name}") for half in HALVES)
        if first is None:
            return None if second is None else (torch.zeros_like(second), second)
        return first, torch.zeros_like(first) if second is None else second

    def end_group(self, half: int, group: int) -> None:
        """Close a group of examples, which are numbered through both halves."""
        if self._groups is None:
            return
        begin = 0 if group < self._groups[0] else self._groups[0]
        for name, total in self.totals(half).items():
            part = total
            if len(part) > SAMPLED_MATRICES:
                evenly = torch.arange(SAMPLED_MATRICES, device=part.device)
                part = part[evenly * len(part) // SAMPLED_MATRICES]
            now = fold_rows(part if name in self._sketched else self._tests.compress(part))
            key = f"groups:{name}"
            if key not in self.tensors:
                self.tensors[key] = torch.zeros(
                    (sum(self._groups), *now.shape), dtype=_GROUP_DTYPE, device=now.device
                )
            kept = self.tensors[key] = self.tensors[key].to(now.device)
            kept[group] = now - kept[begin:group].sum(0, dtype=torch.float32)

    def take_groups(self, name: str) -> torch.Tensor | None:
        """Sketches of all groups of a module, float32 [g, e, p, k]; it is then released."""
        for half in HALVES:
            self.tensors.pop(f"{half}:{name}", None)
        groups = self.tensors.pop(f"groups:{name}", None)
        return None if groups is None else groups.float()


class ExactGradients(HalfSums):
    """Accumulates gradients in float32, two sums per weight."""

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Add one gradient of the current batch, in the layout of the weight."""
        if self._on_host:
            gradient = gradient.cpu()
        key = f"{HALVES[self._half]}:{name}"
        if key in self.tensors:
            total = self.tensors[key] = self.tensors[key].to(gradient.device)
            total.add_(gradient.reshape(total.shape), alpha=self._scale)
        else:
            stack = gradient.reshape(-1, *gradient.shape[-2:])
            self.tensors[key] = stack.to(torch.float32, copy=True).mul_(self._scale)

    def take(
        self, name: str, counts: Sequence[float]
    ) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, torch.Tensor | None]:
        """Mean gradients of both halves, float32 [E, p, q], and sketches of all groups.

        The module is released. `counts` is what the sum of each half is divided by; `None` stands
        for gradients that nothing reached.
        """
        halves, groups = self.both(name), self.take_groups(name)
        if halves is not None:
            halves = halves[0].div_(counts[0]), halves[1].div_(counts[1])
        return halves, groups


def group_bytes(matrices: int, rows: int, columns: int, groups: int) -> int:
    """Memory of the group sketches of one module."""
    kept = min(matrices, SAMPLED_MATRICES)
    return _GROUP_DTYPE.itemsize * groups * kept * folded_rows(rows, columns) * columns
