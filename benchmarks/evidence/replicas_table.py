"""Tables of the arms over several base models and worlds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from analysis import CONFIDENCE, lora_of_size, losses, percent
from arm_table import Arms, finished_arms
from bases import REPLICAS
from published import heading
from ranks import EQUAL_TO, name_of
from replicas import DRAWS, LARGEST, MOVED, RANKED, SCORES, UNIFORM_RANKS
from scipy.stats import t
from study import EQUAL, RANK


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A mean over base models, with its 95 % interval of Student's t."""

    values: Sequence[float]  # the figure of each base model

    @property
    def ends(self) -> tuple[float, float]:
        """The interval."""
        count = len(self.values)
        error = float(np.std(self.values, ddof=1)) / count**0.5
        half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
        middle = float(np.mean(self.values))
        return middle - half, middle + half

    def __str__(self) -> str:
        low, high = self.ends
        return f"{np.mean(self.values):.2f} [{low:.2f}, {high:.2f}]"


def finished_replicas(tasks: Sequence[str]) -> dict[str, list[Arms]]:
    """Of each task, the arms of every base model that has them all; not of the first model."""
    found: dict[str, list[Arms]] = {}
    for task in tasks:
        for base in REPLICAS:
            arms = finished_arms(base, task, DRAWS)
            if all(name in arms for name in (*names(), "full", f"lora r={RANK}")):
                found.setdefault(task, []).append(arms)
    return found


def names() -> tuple[str, ...]:
    """The plans that are compared."""
    ranked = (name_of(score, rank, power) for score, power in RANKED for rank in EQUAL_TO)
    return (*(f"hybrid {score}" for score in SCORES), EQUAL, LARGEST, MOVED, *ranked)


def recovered(arms: Arms, name: str) -> float:
    """Gap recovered by an arm."""
    lora, full, arm = (losses(arms[each]).mean() for each in (f"lora r={RANK}", "full", name))
    return float((lora - arm) / (lora - full))


def over_equal(arms: Arms, name: str) -> float:
    """Logarithm of an arm's loss over that of LoRA with as many parameters."""
    plain = [arms[f"lora r={rank}"] for rank in UNIFORM_RANKS]
    peer = lora_of_size(plain, arms[name]["parameters"])
    return float(np.log(losses(arms[name]).mean() / peer.mean()))


def replicas_table(replicas: Mapping[str, Sequence[Arms]]) -> list[str]:
    """Gap recovered, and loss against LoRA of equal size, over base models."""
    heads = [f"{task} ({len(found)} models)" for task, found in replicas.items()]
    lines = heading("chosen by", *heads, "mean")
    count = min(len(found) for found in replicas.values())
    for name in names():
        rows = [[recovered(arms, name) for arms in found] for found in replicas.values()]
        # Model by model, so that the interval is over models.
        average = Spread(values=np.mean([row[:count] for row in rows], axis=0).tolist())
        cells = [str(Spread(values=row)) for row in rows]
        lines.append(f"| {name.removeprefix('hybrid ')} | {' | '.join(cells)} | {average} |")
    lines += ["", *heading("loss against LoRA of equal size", *heads)]
    for name in names():
        rows = [[over_equal(arms, name) for arms in found] for found in replicas.values()]
        spreads = [Spread(values=row) for row in rows]
        cells = [percent(float(np.mean(item.values)), *item.ends) for item in spreads]
        lines.append(f"| {name.removeprefix('hybrid ')} | {' | '.join(cells)} |")
    return lines
