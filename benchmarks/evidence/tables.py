"""Tables and result file of the study: `python benchmarks/evidence/tables.py`.

Reads the finished arms in `benchmarks/.models/evidence`, writes the dated result file, and puts the
tables into `README.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from analysis import (
    against,
    agreement,
    gap_recovered,
    lora_of_size,
    losses,
    mean,
    percent,
    self_agreement,
)  # fmt: skip
from arm_table import Arms, arm_table, finished_arms, result_of, uniform
from bases import BASES, REPLICAS
from published import heading, publish
from ranks import EQUAL_TO, POWERS, SCORES, name_of
from replicas import DRAWS as REPLICA_DRAWS
from replicas import FIRST
from replicas_table import finished_replicas, replicas_table
from study import DRAWS, EQUAL, GRADIENT_SCORES, RANDOM, RANK, WEIGHT_SCORES
from world import fine_tuning_tasks, new_world

Studies = dict[tuple[str, str], Arms]
# Logarithm of a plan's loss over that of LoRA of one rank with as many parameters.
Ratios = dict[tuple[str, float], dict[tuple[str, int], float]]


def finished() -> Studies:
    """The arms of each base and task that has any, by name."""
    found = {
        (base, task): finished_arms(base, task, DRAWS)
        for base in BASES
        for task in fine_tuning_tasks(new_world())
    }
    return {key: arms for key, arms in found.items() if arms}


def score_table(studies: Studies) -> list[str]:
    """Gap recovered by hybrids of every score, task by task and on average."""
    names = [f"hybrid {score}" for score in (*GRADIENT_SCORES, *WEIGHT_SCORES)]
    names += [RANDOM, EQUAL, "hybrid oracle", "hybrid hls after a quarter of a LoRA run",
              "hybrid hls after a LoRA run", "hybrid tail of a short update"]  # fmt: skip
    heads = [f"{base}, {task}" for base, task in studies]
    lines = heading("chosen by", *heads, "mean")
    for name in names:
        figures = [
            gap_recovered(arms[name], arms[f"lora r={RANK}"], arms["full"])
            if name in arms
            else None
            for arms in studies.values()
        ]
        known = [figure for figure in figures if figure is not None]
        cells = " | ".join("" if figure is None else str(figure) for figure in figures)
        average = str(mean(known)) if len(known) == len(figures) else ""
        lines.append(f"| {name.removeprefix('hybrid ')} | {cells} | {average} |")
    return lines


def rival_table(studies: Studies) -> list[str]:
    """Loss of each hybrid over that of plain LoRA with as many parameters."""
    names = ["hybrid hls", "hybrid hls 0.05", "hybrid hls 0.2", "hybrid hls r=4",
             "hybrid hls r=8", "hybrid spectral", RANDOM, EQUAL, "hybrid oracle",
             "hybrid tail of a short update"]  # fmt: skip
    heads = [f"{base}, {task}" for base, task in studies]
    lines = heading("hybrid", *heads)
    for name in names:
        cells = []
        for arms in studies.values():
            if name not in arms:
                cells.append("")
                continue
            peer = lora_of_size(uniform(arms), arms[name]["parameters"])
            found = against(arms[name], peer)
            cells.append(percent(found.value, found.low, found.high))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def oracle_table(studies: Studies) -> list[str]:
    """Agreement of each score with the gain of each module alone."""
    known = {key: arms["oracle"] for key, arms in studies.items() if "oracle" in arms}
    heads = [f"{base}, {task}" for base, task in known]
    lines = heading("tau with the oracle", *heads)
    cells = [f"{self_agreement(item['gains']):.2f}" for item in known.values()]
    lines.append(f"| the oracle itself, seed against seed | {' | '.join(cells)} |")
    for score in (*GRADIENT_SCORES, *WEIGHT_SCORES, "n_params", "random"):
        cells = []
        for item in known.values():
            ways = [(False, False), (True, False), (False, True)]
            taus = [agreement(item, score, per_parameter=p, within_kind=w) for p, w in ways]
            cells.append(" / ".join("?" if tau is None else f"{tau:.2f}" for tau in taus))
        lines.append(f"| {score} | {' | '.join(cells)} |")
    return lines


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
    lines = heading("score, power", *heads, "mean")
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


def sections(studies: Studies) -> list[str]:
    """All tables as Markdown."""
    tasks = tuple(fine_tuning_tasks(new_world()))
    whole = {key: arms for key, arms in studies.items() if RANDOM in arms}
    parts = ["### Gap recovered at 10 % of the modules", "", *score_table(whole), "",
             "### Against plain LoRA with as many parameters", "", *rival_table(whole), "",
             "### The same with other base models in other worlds", "",
             *replicas_table(finished_replicas(tasks)), "",
             "### A rank for each module against one rank of equal cost", "",
             *ranks_table({task: studies[FIRST, task] for task in tasks}), "",
             "### Scores against the oracle", "", *oracle_table(whole)]  # fmt: skip
    for (base, task), arms in studies.items():
        if "full" in arms and f"lora r={RANK}" in arms:
            parts += ["", f"### {base}, {task}: every arm", "",
                      *arm_table(arms, "nats per counted token")]  # fmt: skip
    return parts


def result(studies: Studies) -> dict[str, Any]:
    """What the result file holds."""
    repeated = {
        (base, task): finished_arms(base, task, REPLICA_DRAWS)
        for base in REPLICAS
        for task in fine_tuning_tasks(new_world())
    }
    return {
        f"{base}, {task}": result_of(arms)
        for (base, task), arms in {**studies, **repeated}.items()
        if arms
    }


def main(arguments: Sequence[str]) -> None:
    """Write everything, or print it where `--print` is said."""
    studies = finished()
    lines = sections(studies)
    if "--print" in arguments:
        print("\n".join(lines))
        return
    publish("tables", lines, "evidence", result(studies))


if __name__ == "__main__":
    main(sys.argv[1:])
