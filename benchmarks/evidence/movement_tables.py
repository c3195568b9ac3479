"""Tables of `movement.py` and `movement_choices.py`, into `README.md`, and their result file.

`python benchmarks/evidence/movement_tables.py` writes, with `--print` it prints.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from analysis import lora_of_size, losses, pooled
from arm_table import Arms, result_of, uniform
from bases import REPLICAS
from journal import lines_of, path_of
from movement import (
    APART,
    BY_GAIN,
    BY_GRADIENTS,
    BY_PRODUCT,
    BY_SHARE,
    BY_TRIALS,
    DRAWS,
    RANKED,
    SHARE_APART,
    SPECTRAL,
    UNIFORM_RANKS,
    ranks_name,
    study_of,
)
from movement_choices import ADAMW, CALIBRATED, GRADIENTS, PLAIN, SETS, SETTINGS
from published import heading, publish
from ranks import EQUAL_TO
from replicas import FIRST, LARGEST
from replicas_table import Spread, recovered
from scipy.stats import spearmanr
from study import RANK
from world import fine_tuning_tasks, new_world

TASKS = tuple(fine_tuning_tasks(new_world()))
HYBRIDS = (BY_TRIALS, APART, BY_GRADIENTS, LARGEST)
OTHERS = (BY_SHARE, SHARE_APART, SPECTRAL)
GAINS = (APART, BY_GAIN, BY_PRODUCT)
RANKS = tuple(ranks_name(source, power, equal) for source, power in RANKED for equal in EQUAL_TO)
EQUAL_LORA = "LoRA of equal size"
CHOSEN = (2, 7)

# Of each base model and task, its arms by name.
Cells = Mapping[tuple[str, str], Arms]
# A figure of the arms of one base model and task.
Figure = Callable[[Arms], float]


def arms_of(base: str, task: str) -> Arms:
    """The finished arms; the random draws also as one, once all are there."""
    arms: dict[str, Any] = dict(study_of(base, task).journal.arms)
    draws = [arms[name] for place in range(DRAWS) if (name := f"{LARGEST} {place}") in arms]
    return {**arms, LARGEST: pooled(draws)} if len(draws) == DRAWS else arms


def finished(cells: Cells, names: Iterable[str]) -> dict[str, list[str]]:
    """Of each task, the base models that have all of these arms, full fine-tuning and LoRA."""
    wanted = {"full", *(f"lora r={rank}" for rank in UNIFORM_RANKS), *names}
    return {
        task: [base for (base, at), arms in cells.items() if at == task and wanted <= set(arms)]
        for task in TASKS
    }


def equal_lora(arms: Arms, name: str) -> float:
    """Mean loss of LoRA with as many parameters as an arm."""
    return float(lora_of_size(uniform(arms), arms[name]["parameters"]).mean())


def recovered_by_equal_lora(arms: Arms, name: str) -> float:
    """Gap recovered by LoRA with as many parameters as an arm."""
    lora, full = (losses(arms[each]).mean() for each in (f"lora r={RANK}", "full"))
    return float((lora - equal_lora(arms, name)) / (lora - full))


def excess_change(arms: Arms, name: str) -> float:
    """Excess loss over full fine-tuning against that of LoRA of equal size, in per cent."""
    full = losses(arms["full"]).mean()
    ratio = (losses(arms[name]).mean() - full) / (equal_lora(arms, name) - full)
    return float(100 * (ratio - 1))


def excess_loss(arms: Arms, name: str) -> float:
    """Loss over that of full fine-tuning, in thousandths of a nat per counted token."""
    return float(1000 * (losses(arms[name]).mean() - losses(arms["full"]).mean()))


def row(
    name: str, cells: Cells, bases: Mapping[str, Sequence[str]], figure: Figure, form: str
) -> str:
    """A row over tasks, and the mean over tasks of the base models that have all of them."""
    values = {
        (base, task): figure(cells[base, task]) for task, found in bases.items() for base in found
    }
    whole = [base for base in bases[TASKS[0]] if all(base in found for found in bases.values())]
    columns = [[values[base, task] for base in bases[task]] for task in TASKS]
    columns.append([float(np.mean([values[base, task] for task in TASKS])) for base in whole])
    return f"| {name} | {' | '.join(spread(column, form) for column in columns)} |"


def spread(values: Sequence[float], form: str) -> str:
    """A mean over base models, from three on with its 95 % interval of Student's t."""
    if not values:
        return ""
    said = form.format(np.mean(values))
    if len(values) < 3:
        return said
    low, high = (form.format(end).removesuffix(" %") for end in Spread(values=values).ends)
    return f"{said} [{low}, {high}]"


def tasks_heading(first: str, bases: Mapping[str, Sequence[str]]) -> list[str]:
    """Head of a table over tasks."""
    heads = [
        f"{task} ({len(found)} {'model' if len(found) == 1 else 'models'})"
        for task, found in bases.items()
    ]
    return heading(first, *heads, "mean")


def recovered_table(
    cells: Cells, bases: Mapping[str, Sequence[str]], names: Sequence[str]
) -> list[str]:
    """Gap recovered by hybrids, and by LoRA with as many parameters as that of trials."""
    lines = tasks_heading("full modules chosen by", bases)
    for name in names:
        figure = partial(recovered, name=name)
        lines.append(row(name.removeprefix("hybrid "), cells, bases, figure, "{:.2f}"))
    figure = partial(recovered_by_equal_lora, name=BY_TRIALS)
    return [*lines, row(f"none: {EQUAL_LORA} as trials", cells, bases, figure, "{:.2f}")]


def lead_table(
    cells: Cells, bases: Mapping[str, Sequence[str]], ours: str, names: Sequence[str]
) -> list[str]:
    """How much more of the gap a hybrid recovers than each other one, base model by base model."""

    def lead(arms: Arms, other: Figure) -> float:
        return recovered(arms, ours) - other(arms)

    lines = tasks_heading(f"lead of {ours.removeprefix('hybrid ')} over", bases)
    for name in names:
        if name != ours:
            figure = partial(lead, other=partial(recovered, name=name))
            lines.append(row(name.removeprefix("hybrid "), cells, bases, figure, "{:+.2f}"))
    figure = partial(lead, other=partial(recovered_by_equal_lora, name=ours))
    return [*lines, row(EQUAL_LORA, cells, bases, figure, "{:+.2f}")]


def excess_table(
    cells: Cells, bases: Mapping[str, Sequence[str]], names: Sequence[str]
) -> list[str]:
    """Excess loss over full fine-tuning against LoRA of equal size."""
    lines = tasks_heading("excess loss against LoRA of equal size", bases)
    for name in names:
        figure = partial(excess_change, name=name)
        lines.append(row(name.removeprefix("hybrid "), cells, bases, figure, "{:+.0f} %"))
    return lines


def cell_table(cells: Cells) -> list[str]:
    """Of every base model and task, LoRA's excess loss, what hybrids recover and chosen modules."""
    names = HYBRIDS
    lines = heading(
        "base, task", f"excess loss of LoRA r={RANK}, 1e-3 nats",
        *(name.removeprefix("hybrid ") for name in names),
        EQUAL_LORA, "chosen by trials", "by gradients",
    )  # fmt: skip
    for (base, task), arms in cells.items():
        if {"full", f"lora r={RANK}"} <= set(arms):
            known = [f"{recovered(arms, name):.2f}" if name in arms else "" for name in names]
            plain = all(f"lora r={rank}" in arms for rank in UNIFORM_RANKS)
            equal = f"{recovered_by_equal_lora(arms, BY_TRIALS):.2f}" if plain else ""
            chosen = [
                ", ".join(map(short, arms[name]["full"])) if name in arms else ""
                for name in (BY_TRIALS, BY_GRADIENTS)
            ]
            lag = excess_loss(arms, f"lora r={RANK}")
            lines.append(f"| {base}, {task} | {lag:.1f} | {' | '.join([*known, equal, *chosen])} |")
    return lines


def short(module: str) -> str:
    """Layer and kind of a module."""
    parts = module.split(".")
    return f"{parts[2]}.{parts[-1].removesuffix('_proj')}"


def choices_of(task: str) -> dict[str, dict[str, Any]]:
    """What `movement_choices.py` found on a task."""
    return {line["name"]: line for line in lines_of(path_of(FIRST, f"{task}-choices"))}


def best(scores: Mapping[str, float], count: int) -> set[str]:
    """The modules of the largest scores."""
    return set(sorted(scores, key=lambda name: -scores[name])[:count])


def choice_table(choices: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Modules that other trials choose in common with the default, and Spearman's rho."""
    lines = heading("against the default", *choices, f"in common of {CHOSEN[0]} / {CHOSEN[1]}")
    for name in (*SETTINGS, ADAMW, PLAIN, *GRADIENTS):
        if not all({name, "default"} <= set(found) for found in choices.values()):
            continue
        texts, shares = [], []
        for found in choices.values():
            ours, theirs = found["default"]["scores"], found[name]["scores"]
            common = [len(best(ours, count) & best(theirs, count)) for count in CHOSEN]
            rho = spearmanr([ours[key] for key in ours], [theirs[key] for key in ours]).statistic
            texts.append(f"{common[0]} / {common[1]} ({rho:.2f})")
            shares.append(common)
        means = np.mean(shares, axis=0)
        lines.append(f"| {name} | {' | '.join(texts)} | {means[0]:.1f} / {means[1]:.1f} |")
    return lines


def calibration(found: Mapping[str, Any], trials: int) -> float:
    """Stated standard error over spread between probe sets, the median over modules."""
    sets = [found[f"{trials} trials, probe set {number}"] for number in range(SETS)]
    modules = sets[0]["scores"]
    ratios = []
    for module in modules:
        observed = np.std([item["scores"][module] for item in sets], ddof=1)
        stated = np.sqrt(np.mean([item["errors"][module] ** 2 for item in sets]))
        ratios.append(stated / observed)
    return float(np.median(ratios))


def calibration_table(choices: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Calibration of the standard errors, by task and number of trials."""
    lines = heading("trials", *choices)
    for trials in CALIBRATED:
        last = f"{trials} trials, probe set {SETS - 1}"
        if all(last in found for found in choices.values()):
            cells = [f"{calibration(found, trials):.2f}" for found in choices.values()]
            lines.append(f"| {trials} | {' | '.join(cells)} |")
    return lines


def orders(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each setting, its rate and the modules from the largest score to the smallest."""
    return {
        name: {
            "rate": item.get("rate"),
            "order": " ".join(map(short, sorted(item["scores"], key=lambda n: -item["scores"][n]))),
        }
        for name, item in found.items()
    }


def sections(cells: Cells, choices: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """All tables as Markdown."""
    parts: list[str] = []
    for title, ours, names in (
        ("", APART, HYBRIDS),
        (" of other scores", APART, (APART, *OTHERS)),
        (" by the loss that tails would gain", APART, GAINS),
    ):
        bases = finished(cells, names)
        if all(bases.values()):
            parts += [f"#### Gap recovered by hybrids{title}", "",
                      *recovered_table(cells, bases, names), "",
                      *lead_table(cells, bases, ours, names), "",
                      *excess_table(cells, bases, names), ""]  # fmt: skip
    eight = f"lora r={EQUAL_TO[-1]}"
    ranks = [name for name in RANKS if all(finished(cells, (name, eight)).values())]
    if ranks:
        bases = finished(cells, (*ranks, eight))
        parts += ["#### A rank for each module", "", *excess_table(cells, bases, ranks), ""]
    parts += ["#### Base model by base model", "", *cell_table(cells)]
    if choices:
        parts += ["", "#### The choice by other trials", "", *choice_table(choices), "",
                  "#### Stated standard error over observed spread", "",
                  *calibration_table(choices)]  # fmt: skip
    return parts


def main(arguments: Sequence[str]) -> None:
    """Write everything, or print it where `--print` is said."""
    cells = {
        (base, task): arms
        for base in (FIRST, *REPLICAS)
        for task in TASKS
        if (arms := arms_of(base, task))
    }
    choices = {task: found for task in TASKS if (found := choices_of(task))}
    lines = sections(cells, choices)
    if "--print" in arguments:
        print("\n".join(lines))
        return
    content: dict[str, Any] = {
        f"{base}, {task}": result_of({name: arms[name] for name in arms if name != LARGEST})
        for (base, task), arms in cells.items()
    }
    content |= {f"choices, {task}": orders(found) for task, found in choices.items()}
    publish("movement", lines, "evidence_movement", content)


if __name__ == "__main__":
    main(sys.argv[1:])
