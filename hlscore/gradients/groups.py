"""Sketches of the single probe groups: all that standard errors need of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hlscore.gradients.sketch import fold_rows

_ROWS_PER_COLUMN = 2
# Standard errors need no more digits than this holds.
_DTYPE = torch.bfloat16
# Standard errors of fused experts come from this many of them, scaled up by energy.
SAMPLED_MATRICES = 16
_PREFIX = "groups:"


def folded_rows(rows: int, columns: int) -> int:
    """Rows of a group sketch: those of the sketch, but no more than twice its columns."""
    return min(rows, _ROWS_PER_COLUMN * columns)


def sampled(sketches: torch.Tensor) -> torch.Tensor:
    """Keep at most 16 of E matrices, evenly spaced: [E, m, k] gives [e, m, k]."""
    count = sketches.shape[0]
    if count <= SAMPLED_MATRICES:
        return sketches
    places = torch.arange(SAMPLED_MATRICES, device=sketches.device) * count // SAMPLED_MATRICES
    return sketches[places]


class GroupSketches:
    """Keeps a folded sketch of every finished group.

    A group's sketch is the sketch of its half's sum at its end less that at its start: sketches
    are linear, so no sum per group is needed.

    Args:
        kept: Groups in each half; `None` keeps no sketches.
    """

    def __init__(self, kept: tuple[int, int] | None) -> None:
        self.kept = kept
        self._sketches: dict[str, torch.Tensor] = {}

    def end(self, name: str, group: int, total: torch.Tensor) -> None:
        """Close a group.

        Args:
            group: Its number, those of the first half first.
            total: Sketched sum of its half so far, float32 [E, m, k].
        """
        if self.kept is None:
            return
        part = sampled(total)
        now = fold_rows(part, folded_rows(*part.shape[-2:]))
        if name not in self._sketches:
            self._sketches[name] = torch.zeros(
                (sum(self.kept), *now.shape), dtype=_DTYPE, device=now.device
            )
        kept = self._sketches[name] = self._sketches[name].to(now.device)
        begin = 0 if group < self.kept[0] else self.kept[0]
        kept[group] = now - kept[begin:group].sum(0, dtype=torch.float32)

    def of(self, name: str) -> torch.Tensor | None:
        """The sketches of all groups, first half first: float32 [g, e, p, k]."""
        found = self._sketches.get(name)
        return None if found is None else found.float()

    def forget(self, name: str) -> None:
        """Release what is held for a module."""
        self._sketches.pop(name, None)

    def state(self) -> dict[str, torch.Tensor]:
        """Every sketch by name, for sums over processes and for files."""
        return {f"{_PREFIX}{name}": value for name, value in self._sketches.items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over the sketches in what `state` gave; other entries are ignored."""
        for key, value in state.items():
            if key.startswith(_PREFIX):
                self._sketches[key.removeprefix(_PREFIX)] = value


def group_bytes(matrices: int, rows: int, columns: int, groups: int) -> int:
    """Memory of the group sketches of one module."""
    kept = min(matrices, SAMPLED_MATRICES)
    return _DTYPE.itemsize * groups * kept * folded_rows(rows, columns) * columns
