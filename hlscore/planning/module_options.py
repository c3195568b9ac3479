"""What may be done with each module, and what that is worth and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from hlscore.errors import UsageError
from hlscore.planning.locks import Lock
from hlscore.planning.memory import Choice, Mode, extra_bytes
from hlscore.records import ModuleRow
from hlscore.scores.registry import Score, score_of
from hlscore.settings import MemorySettings, PlanSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Option(Choice):
    """One thing that may be done with a module.

    Attributes:
        value: What the score says it gains over leaving the module frozen.
        params: Parameters that it trains.
        bytes: Memory that it takes on top of leaving the module frozen.
    """

    value: float
    params: int
    bytes: int


def option(
    row: ModuleRow, mode: Mode, rank: int, memory: MemorySettings, value: float = 0.0
) -> Option:
    """One option of a module with its costs; the rank is ignored unless the mode is `lora`."""
    choice = Choice(row=row, mode=mode, rank=rank if mode == "lora" else 0)
    return Option(
        row=row,
        mode=mode,
        rank=choice.rank,
        value=value,
        params=choice.trained_params,
        bytes=extra_bytes(choice, memory),
    )


def stays_frozen(row: ModuleRow, tied: frozenset[str]) -> bool:
    """Whether LoRA on a module is ruled out: its weight is tied, or the loss never reaches it."""
    return row.module in tied or is_unreached(row)


def is_unreached(row: ModuleRow) -> bool:
    """Whether the probed loss does not depend on a module: no training of it would change it."""
    return row.status == "unreached"


def alternative(
    row: ModuleRow, lock: Lock | None, tied: frozenset[str], settings: PlanSettings
) -> Option:
    """What is done with a module that is not trained in full, under one rank for all.

    Args:
        lock: Its lock, if any; one on `full` gives the full option.
    """
    if lock is not None:
        check_lock(row.module, lock, tied)
        return option(row, lock.mode, lock.rank or settings.rank, settings.memory)
    mode: Mode = "frozen" if stays_frozen(row, tied) else "lora"
    return option(row, mode, settings.rank, settings.memory)


def menu_of(
    row: ModuleRow,
    lock: Lock | None,
    tied: frozenset[str],
    settings: PlanSettings,
    curve: Mapping[int, float],
) -> tuple[Option, ...]:
    """Every option of a module whose rank the solver chooses.

    What costs no less than another option and is worth no more is left out; so are ranks that
    span the whole matrix, as full fine-tuning does, and with a least rank whatever is below it.

    Args:
        curve: What rank r leaves over, by r; rank 0 leaves everything.
    """
    if lock is not None:
        check_lock(row.module, lock, tied)
    ranks = settings.ranks if lock is None or lock.rank is None else (lock.rank,)
    whole = curve.get(0, 0.0)

    def worth(rank: int) -> float:
        reached = whole - (curve.get(rank, whole) if rank else 0.0)
        return float(reached**settings.value_power)

    found = [option(row, "frozen", 0, settings.memory)]
    if lock is None and is_unreached(row):
        return tuple(found)
    if row.module not in tied:
        if settings.min_rank and lock is None:
            ranks = tuple(rank for rank in ranks if rank >= settings.min_rank)
            found = []
        useful = [rank for rank in ranks if rank < row.max_rank]
        found += [
            option(row, "lora", rank, settings.memory, worth(rank))
            for rank in (useful if lock is None or lock.mode != "lora" else useful or ranks[:1])
        ]
    found.append(option(row, "full", 0, settings.memory, worth(0)))
    if lock is None:
        return _worthwhile(found)
    return tuple(item for item in found if item.mode == lock.mode)


def _worthwhile(options: Sequence[Option]) -> tuple[Option, ...]:
    """Options that none before or after them matches at no higher cost of any kind."""

    def beats(one: Option, other: Option) -> bool:
        full = (one.mode == "full") <= (other.mode == "full")
        cheap = one.params <= other.params and one.bytes <= other.bytes and full
        return cheap and one.value >= other.value

    return tuple(
        item
        for place, item in enumerate(options)
        if not any(beats(other, item) for other in options[:place])
        and not any(beats(other, item) and not beats(item, other) for other in options[place + 1 :])
    )


def check_curve(score: Score) -> None:
    """Refuse a score that cannot choose ranks."""
    if not score.leaves_over:
        raise UsageError(
            f"--ranks needs a score with a value for each rank; '{score.name}' has none.",
            hint="Use --score hls, tail or l1_adam.",
        )


def curve_of(row: ModuleRow, score: Score, settings: PlanSettings) -> dict[int, float]:
    """What each rank leaves over of a module, by the score, without the noise.

    A cross-fitted curve can fall below zero and rise again, which no true one does: what is left
    is taken as at most what a smaller rank leaves, and at least nothing. A module without
    measured signal is then worth nothing at any rank.

    Returns:
        The score at rank 0 and at every rank that may be chosen.
    """
    check_curve(score)
    wanted = sorted({0, settings.rank, *settings.ranks})
    left = [max(0.0, score_of(row, score, rank) or 0.0) for rank in wanted]
    return dict(zip(wanted, accumulate(left, min), strict=True))


def check_lock(module: str, lock: Lock, tied: frozenset[str]) -> None:
    """Refuse LoRA on a tied weight."""
    if lock.mode == "lora" and module in tied:
        raise UsageError(
            f"--lock '{lock.pattern}' asks for LoRA on '{module}', whose weight is tied.",
            hint="LoRA on a tied weight merges wrongly: use =full or =frozen.",
        )
