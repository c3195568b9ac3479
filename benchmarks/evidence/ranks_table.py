"""Table of plans with a rank for each module, and the power of the value model fitted to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from analysis import losses
from arm_table import Arms
from ranks import EQUAL_TO, POWERS, SCORES, name_of

# Logarithm of a plan's loss over that of LoRA of one rank with as many parameters.
Ratios = dict[tuple[str, float], dict[tuple[str, int], float]]


def ratios_of(studies: Mapping[str, Arms]) -> Ratios:
    """How plans of each score and power do, by task and cost.

    Returns:
        Of each score and power that is finished everywhere, the ratios.
    """
    found: Ratios = {}
    for score in SCORES:
        for power in sorted(POWERS, reverse=True):
            cells = {
                (task, rank): float(
                    np.log(losses(arms[name]).mean() / losses(arms[f"lora r={rank}"]).mean())
                )
                for task, arms in studies.items()
                for rank in EQUAL_TO
                if (name := name_of(score, rank, power)) in arms
            }
            if len(cells) == len(studies) * len(EQUAL_TO):
                found[score, power] = cells
    return found


def fitted(ratios: Ratios, score: str, tasks: Sequence[str]) -> float:
    """The power with the lowest mean ratio on some tasks."""
    known = {
        power: float(np.mean([ratio for (task, _), ratio in cells.items() if task in tasks]))
        for (name, power), cells in ratios.items()
        if name == score
    }
    return min(known, key=lambda power: known[power])


def ranks_table(studies: Mapping[str, Arms]) -> list[str]:
    """Loss of every plan of ranks against one rank of equal cost, and of the fitted ones."""
    ratios, tasks = ratios_of(studies), list(studies)
    keys = [(task, rank) for task in tasks for rank in EQUAL_TO]
    heads = [f"{task}, r={rank}" for task, rank in keys]
    lines = [f"| score, power | {' | '.join(heads)} | mean |", "|---" * (len(heads) + 2) + "|"]
    for (score, power), cells in ratios.items():
        lines.append(_row(f"{score}, {power:g}", [cells[key] for key in keys]))
    for score in dict.fromkeys(name for name, _ in ratios):
        powers = {task: fitted(ratios, score, [t for t in tasks if t != task]) for task in tasks}
        tested = [ratios[score, powers[task]][task, rank] for task, rank in keys]
        lines.append(_row(f"{score}, power fitted on the two other tasks", tested))
    return lines


def _row(name: str, ratios: Sequence[float]) -> str:
    cells = [f"{100 * np.expm1(ratio):+.1f} %" for ratio in (*ratios, float(np.mean(ratios)))]
    return f"| {name} | {' | '.join(cells)} |"
