"""How much of what training wants to change a LoRA rank, and a plan, can follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hlscore.planning.memory import Mode
from hlscore.records import ModuleRow
from hlscore.scores.registry import SCORES

Covered = Literal["gradient", "update"]

# Below it nothing is left that one would train for.
NOTHING_LEFT = 5e-4


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
    rows: Sequence[ModuleRow],
    choices: Mapping[str, tuple[Mode, int]],
    rank: int,
    *,
    of: Covered = "gradient",
) -> Coverage | None:
    """Work out what LoRA of a rank and a plan follow.

    Returns:
        The shares; `None` where nothing was probed, or a curve does not hold a rank.
    """
    tail = SCORES["tail"].compute
    whole = within_lora = within_plan = 0.0
    for row in rows:
        mode, chosen = choices[row.module]
        energy, left = row.grad_energy, tail(row, rank)
        left_by_plan = {"full": 0.0, "frozen": energy}.get(mode, tail(row, chosen))
        if energy is None or left is None or left_by_plan is None:
            return None
        whole += energy
        within_lora += energy - left
        within_plan += energy - left_by_plan
    if whole <= 0:
        return None
    shares = (min(1.0, max(0.0, part / whole)) for part in (within_lora, within_plan))
    return Coverage(of=of, rank=rank, lora=next(shares), plan=next(shares))


def coverage_notes(found: Coverage | None) -> tuple[str, ...]:
    """That a rank leaves nothing over, where it does."""
    if found is None or 1 - found.lora >= NOTHING_LEFT:
        return ()
    left = 1 - found.lora
    share = f"{100 * left:.1g} %" if left > 1e-9 else "nothing"
    return (
        f"LoRA of rank {found.rank} leaves {share} of this {found.of} over: full fine-tuning has "
        "next to nothing to add. Compare with a lower --rank, or train LoRA alone.",
    )


def rank_counts(ranks: Iterable[int]) -> str:
    """How many modules have each rank: `12 of rank 4, 30 of rank 8, 150 of rank 64`."""
    found = sorted(Counter(ranks).items())
    return ", ".join(f"{number:,} of rank {rank}" for rank, number in found)


def largest_rank_notes(ranks: Sequence[int], allowed: Sequence[int]) -> tuple[str, ...]:
    """That most adapters have the largest rank to choose from, where they do.

    Args:
        ranks: Rank of each adapter of the plan.
    """
    if not allowed or not ranks:
        return ()
    largest = max(allowed)
    number = sum(rank == largest for rank in ranks)
    if 2 * number <= len(ranks):
        return ()
    return (
        f"{number:,} of {len(ranks):,} adapters have the largest rank of --ranks ({largest}); "
        f"in all {rank_counts(ranks)}. Add larger ranks, or lower the budget.",
    )
