"""Numbers behind the charts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hlscore.pages.content import INTERVAL, Content
from hlscore.planning.memory import Choice, MemoryUse, memory_use
from hlscore.reasons import tied_modules
from hlscore.settings import MemorySettings

Unit = Literal["modules", "parameters"]

_MOST_POINTS = 200
LEVELS = 5
_LEVEL_POWER = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What share of all positive scores the best modules hold.

    Attributes:
        taken: Share of modules or of parameters, rising from 0 to 1.
        held: Share of the sum of positive scores that the best modules up to there hold.
        low: Lower end of the 95 % band over resamples; empty without them.
        high: Upper end of it.
        plan_taken: Share that the plan trains in full.
        plan_held: Share of the sum that those modules hold.
    """

    taken: tuple[float, ...]
    held: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    plan_taken: float
    plan_held: float

    def at(self, share: float) -> float:
        """Share held at a share taken, between the points on straight lines."""
        return float(np.interp(share, self.taken, self.held))


def reach(content: Content, unit: Unit) -> Reach | None:
    """Add up what the best modules hold, in the order of the plan's score.

    The band keeps that order and adds up the positive part of each resample.

    Returns:
        The curve at 200 points or fewer; `None` where no score is above zero.
    """
    lines = content.lines
    gains = np.array([max(0.0, line.score or 0.0) for line in lines])
    if gains.sum() <= 0:
        return None
    costs = np.array([line.row.n_params if unit == "parameters" else 1 for line in lines], float)
    taken, held = _shares(costs), _shares(gains)
    places = np.unique(np.linspace(0, len(lines), min(len(lines) + 1, _MOST_POINTS)).astype(int))
    low: NDArray[np.float64] = np.zeros(0)
    high: NDArray[np.float64] = np.zeros(0)
    resampled = np.maximum(content.replicates, 0)
    resampled = resampled[:, resampled.sum(axis=0) > 0]
    if resampled.shape[1] > 1:
        low, high = np.quantile(_shares(resampled)[places], INTERVAL, axis=1)
    full = np.array([line.full for line in lines])
    return Reach(
        taken=tuple(taken[places].tolist()),
        held=tuple(held[places].tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        plan_taken=float(costs[full].sum() / costs.sum()),
        plan_held=float(gains[full].sum() / gains.sum()),
    )


def _shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running sums over the first axis, from 0 to 1."""
    sums = np.cumsum(values, axis=0)
    return np.concatenate([np.zeros_like(sums[:1]), sums / sums[-1]])


def level(score: float | None, largest: float) -> int:
    """Shade of a score: 0 for none or none above zero, then 1 to 5 by its square root."""
    if score is None or score <= 0 or largest <= 0:
        return 0
    return 1 + round((LEVELS - 1) * float((score / largest) ** _LEVEL_POWER))


def level_names() -> tuple[str, ...]:
    """What each shade stands for, as shares of the largest score."""
    ends = [((number - 0.5) / (LEVELS - 1)) ** (1 / _LEVEL_POWER) for number in range(1, LEVELS)]
    shown = [f"{100 * end:.0f}" for end in ends]
    between = [f"{low} to {high} %" for low, high in pairwise(shown)]
    return ("zero or below", f"up to {shown[0]} %", *between, f"over {shown[-1]} %")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to train, with the memory that it takes.

    Attributes:
        name: In words.
        use: Memory by use.
        trained_params: Parameters that it trains.
    """

    name: str
    use: MemoryUse
    trained_params: int


def ways(content: Content) -> tuple[Way, ...]:
    """Price the plan, LoRA of its rank everywhere, and every candidate in full.

    Returns:
        The three ways; all are run as PEFT runs a plan.
    """
    plan = content.plan
    rank, tied = plan.lora.rank, tied_modules(content.report.rows)
    rows = [line.row for line in content.lines]
    lora = [
        Choice(row=row, mode="frozen")
        if row.module in tied
        else Choice(row=row, mode="lora", rank=rank)
        for row in rows
    ]
    named = (
        (
            "this plan",
            [Choice(row=line.row, mode=line.mode, rank=line.rank) for line in content.lines],
            plan.totals.trained_params,
        ),
        (f"LoRA {rank} everywhere", lora, plan.totals.plain_lora_params),
        (
            "everything in full",
            [Choice(row=row, mode="full") for row in rows],
            plan.totals.candidate_params,
        ),
    )
    asked = plan.memory
    settings = MemorySettings(
        optimizer=asked.optimizer,
        master=asked.master,
        base_bits=asked.base_bits,
        train_batch=asked.train_batch,
        train_length=asked.train_length,
    )
    return tuple(
        Way(
            name=name,
            use=memory_use(content.report.model, choices, settings),
            trained_params=trained,
        )
        for name, choices, trained in named
    )


USES: dict[str, tuple[str, ...]] = {
    "frozen weights": ("frozen_bytes",),
    "copies that PEFT keeps": ("copy_bytes",),
    "trained weights": ("full_bytes", "adapter_bytes"),
    "gradients": ("gradient_bytes",),
    "optimizer state": ("optimizer_bytes",),
    "activations (estimate)": ("activation_bytes",),
}


def bytes_by_use(use: MemoryUse) -> dict[str, int]:
    """Memory under the names that a page gives its uses."""
    return {name: sum(getattr(use, part) for part in parts) for name, parts in USES.items()}
