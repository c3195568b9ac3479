"""How much of what training wants to change a LoRA rank, and a plan, can follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hlscore.planning.module_options import Option
from hlscore.records import ModuleRow
from hlscore.scores.registry import SCORES

Covered = Literal["gradient", "update"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Shares of the energy (squared Frobenius norm) of all candidates' gradients or updates.

    Attributes:
        of: Whether gradients or weight updates were measured.
        rank: The LoRA rank.
        lora: Share within LoRA of that rank on every candidate, by the best approximation of each.
        plan: Share within what the plan trains: all of a module in full, nothing of a frozen one.
    """

    of: Covered
    rank: int
    lora: float
    plan: float


def coverage(
    rows: Sequence[ModuleRow], options: Sequence[Option], rank: int, *, of: Covered
) -> Coverage | None:
    """Work out what LoRA of a rank and a plan follow.

    Args:
        options: What the plan does with each row.

    Returns:
        The shares; `None` where nothing was probed, or a curve does not hold a rank.
    """
    tail = SCORES["tail"].compute
    whole = within_lora = within_plan = 0.0
    for row, item in zip(rows, options, strict=True):
        energy, left = row.grad_energy, tail(row, rank)
        left_by_plan = {"full": 0.0, "frozen": energy}.get(item.mode, tail(row, item.rank))
        if energy is None or left is None or left_by_plan is None:
            return None
        whole += energy
        within_lora += energy - left
        within_plan += energy - left_by_plan
    if whole <= 0:
        return None
    lora, plan = (min(1.0, max(0.0, part / whole)) for part in (within_lora, within_plan))
    return Coverage(of=of, rank=rank, lora=lora, plan=plan)
