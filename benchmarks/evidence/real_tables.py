"""Tables of the study on a real model: `python benchmarks/evidence/real_tables.py`.

Reads the journals in `benchmarks/results/real`, whatever is in them so far, prints the
tables, names the arms that are missing, puts them into the README beside this file and writes
`benchmarks/results/real_DATE.json`. With `--print` nothing is written.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from journal import lines_of
from published import publish
from real_study import ARMS, EQUAL_SIZE, JOURNALS, RANK, TUNING_SEED
from replicas_table import Spread

LORA = f"lora r={RANK}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """An arm of one task at its best rates."""

    name: str  # the arm
    parameters: int  # trained parameters
    rates: tuple[float, float]  # peak learning rates of full modules and adapters
    losses: Mapping[int, float]  # test loss of each reported seed, in nats per counted token
    accuracies: Mapping[int, float]  # share of exact answers of each reported seed
    full: tuple[str, ...]  # modules trained in full
    seconds: float  # of a training, mean

    @property
    def loss(self) -> float:
        """Mean test loss."""
        return float(np.mean(list(self.losses.values())))

    @property
    def accuracy(self) -> float:
        """Mean share of exact answers."""
        return float(np.mean(list(self.accuracies.values())))


Arms = dict[str, Trained]


def arms_of(lines: Sequence[Mapping[str, Any]]) -> Arms:
    """The arms of a journal that have a reported seed, in the order of the study.

    Of several rates with reported seeds those count that did best on the tuning split.
    """
    found: Arms = {}
    trained = [line for line in lines if "arm" in line and line["settings"] == study_of(lines)]
    for name in dict.fromkeys(line["arm"] for line in trained):
        tried: dict[Any, list[Mapping[str, Any]]] = {}
        tuned: dict[Any, float] = {}
        for line in trained:
            key = (line["full_rate"], line["lora_rate"], tuple(line["full"]))
            if line["arm"] == name and line["seed"] == TUNING_SEED:
                tuned[key] = line["tuning_loss"]
            elif line["arm"] == name:
                tried.setdefault(key, []).append(line)
        if tried:
            mine = tried[min(tried, key=lambda key: tuned.get(key, math.inf))]
            found[name] = Trained(
                name=name,
                parameters=mine[0]["parameters"],
                rates=(mine[0]["full_rate"], mine[0]["lora_rate"]),
                losses={line["seed"]: line["test_loss"] for line in mine},
                accuracies={line["seed"]: line["accuracy"] for line in mine},
                full=tuple(mine[0]["full"]),
                seconds=float(np.mean([line["seconds"] for line in mine])),
            )
    return found


def study_of(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The settings of the study itself: trainings with other settings were added by hand."""
    settings: Mapping[str, Any] = lines[0]["settings"]
    return settings


def added(lines: Sequence[Mapping[str, Any]], arms: Arms) -> list[str]:
    """Single trainings on another device, beside arms of the same seed."""
    found = []
    for line in lines:
        if "arm" not in line or line["settings"] == study_of(lines):
            continue
        seed = line["seed"]
        others = [arms.get("full"), arms.get(LORA), named(arms, f"lora {EQUAL_SIZE}")]
        losses = [math.nan if arm is None else loss_at(lines, arm, seed) for arm in others]
        own = arms.get(line["arm"])
        losses.append(math.nan if own is None else loss_at(lines, own, seed))
        full, lora, matched, _ = losses
        shares = [(lora - loss) / (lora - full) for loss in (line["test_loss"], matched)]
        cells = " | ".join("" if math.isnan(loss) else f"{loss:.4f}" for loss in losses)
        found.append(
            f"| {line['arm']} | {line['full_rate']:g} {line['lora_rate']:g} | {seed} "
            f"| {line['device']} | {line['test_loss']:.4f} | {100 * line['accuracy']:.1f} "
            f"| {cells} | {shares[0]:.2f} | {shares[1]:.2f} |"
        )
    header = (
        f"| arm | rates | seed | on | test loss | exact, % | full | {LORA} | lora {EQUAL_SIZE} "
        "| the arm as in the table | gap of this seed recovered | by lora equal size |"
    )
    return ["", "Trained on their own (`--arm`), with test losses of the same seed:", "", header,
            "|---" * 12 + "|", *found] if found else []  # fmt: skip


def loss_at(lines: Sequence[Mapping[str, Any]], arm: Trained, seed: int) -> float:
    """Test loss of an arm at its rates with a seed, that of tuning too; NaN where there is none."""
    for line in lines:
        same = line.get("arm") == arm.name and line["settings"] == study_of(lines)
        if same and (line["seed"], line["full_rate"], line["lora_rate"]) == (seed, *arm.rates):
            # Of trainings for the choice of a rate some journals hold the tuning loss only.
            return float(line.get("test_loss", math.nan))
    return math.nan


def paired(value: Any, *arms: Trained, of: str = "losses") -> Spread:
    """A figure of several arms, seed by seed where all have the seed."""
    tables = [getattr(arm, of) for arm in arms]
    seeds = sorted(set.intersection(*(set(table) for table in tables)))
    return Spread(values=[float(value(*(table[seed] for table in tables))) for seed in seeds])


def said(spread: Spread, scale: float = 1.0, digits: int = 2, sign: str = "") -> str:
    """A mean with its interval; alone where there is a single seed."""
    if not spread.values:
        return ""
    middle = scale * float(np.mean(spread.values))
    if not math.isfinite(middle):
        return "not defined"
    if len(spread.values) == 1:
        return f"{middle:{sign}.{digits}f}"
    low, high = (scale * end for end in spread.ends)
    return f"{middle:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def equal_lora(arms: Arms, arm: Trained) -> Trained | None:
    """The LoRA of one rank whose parameters come nearest to an arm's; not the arm itself."""
    plain = [other for other in arms.values() if other.name.startswith("lora r=")]
    nearest = min(
        plain, key=lambda other: abs(math.log(other.parameters / arm.parameters)), default=None
    )
    if nearest is None or nearest is arm:
        return None
    close = 0.85 < nearest.parameters / arm.parameters < 1.18
    return nearest if close else None


def recovered(arms: Arms, arm: Trained) -> Spread:
    """Share of the gap between LoRA and full fine-tuning, of the mean losses of shared seeds."""
    lora, full = arms[LORA], arms["full"]
    gap = np.mean(paired(lambda a, b: a - b, lora, full).values)
    if gap <= 0:
        return Spread(values=[math.nan])
    return paired(lambda a, b: (a - b) / gap, lora, arm)


def excess(arms: Arms, arm: Trained) -> Spread | None:
    """Loss over full fine-tuning against that of LoRA of equal size; -0.2 is a fifth less."""
    peer, full = equal_lora(arms, arm), arms["full"]
    if peer is None or arm is full:
        return None
    base = np.mean(paired(lambda a, b: a - b, peer, full).values)
    if base <= 0:
        return Spread(values=[math.nan])
    return paired(lambda a, b: (a - b) / base, arm, peer)


def task_table(arms: Arms) -> list[str]:
    """Every arm of a task."""
    lines = [
        "| arm | trained parameters | rates | seeds | test loss | exact, % | gap recovered "
        "| excess loss against LoRA of equal size, % | exact answers against it, points |",
        "|---" * 9 + "|",
    ]
    for arm in arms.values():
        peer, over = equal_lora(arms, arm), excess(arms, arm)
        points = paired(lambda a, b: a - b, arm, peer, of="accuracies") if peer else None
        shown = "reference" if arm.name == LORA else said(recovered(arms, arm))
        lines.append(
            f"| {arm.name} | {arm.parameters:,} | {arm.rates[0]:g} {arm.rates[1]:g} "
            f"| {len(arm.losses)} | {arm.loss:.4f} | {100 * arm.accuracy:.1f} | {shown} "
            f"| {said(over, 100, 0, '+') if over else ''} "
            f"| {said(points, 100, 1, '+') if points else ''} |"
        )
    return lines


def summary(studies: Mapping[str, Arms]) -> list[str]:
    """Gap recovered by the arms on each task; their means where every task has the figure."""
    lines = [
        f"| arm | {' | '.join(studies)} | mean gap recovered | mean excess loss against LoRA of "
        "equal size | mean exact |",
        "|---" * (len(studies) + 4) + "|",
    ]
    for name in ARMS:
        cells, gaps, overs, rights = [], [], [], []
        for arms in studies.values():
            arm = named(arms, name)
            if arm is None:
                cells.append("missing")
                continue
            spread, over = recovered(arms, arm), excess(arms, arm)
            gaps.append(float(np.mean(spread.values)))
            if over is not None:
                overs.append(float(np.mean(over.values)))
            rights.append(arm.accuracy)
            cells.append("reference" if name == LORA else said(spread))
        averages = [
            f"{np.mean(values):{shape}}"
            if len(values) == len(studies) and np.isfinite(values).all()
            else ""
            for values, shape in ((gaps, ".2f"), (overs, "+.0%"), (rights, ".1%"))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {' | '.join(averages)} |")
    return lines


def named(arms: Arms, name: str) -> Trained | None:
    """An arm by its name in `ARMS`."""
    if not name.endswith(EQUAL_SIZE):
        return arms.get(name)
    start = f"{name.removesuffix(EQUAL_SIZE)}r="
    small = f"{start}{RANK}"
    return next((arm for key, arm in arms.items() if key.startswith(start) and key != small), None)


def choices(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What scores chose: kinds of modules, and how many come back with other examples."""
    found = []
    for line in lines:
        if line["name"].startswith("choice "):
            kinds = Counter(module.rsplit(".", 1)[-1] for module in line["modules"])
            parts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            common = f"; {line['common']} as before" if "common" in line else ""
            found.append(f"- {line['name'].removeprefix('choice ')}: {parts}{common}")
    return found


def sections(studies: Mapping[str, Arms], journals: Mapping[str, Sequence[Any]]) -> list[str]:
    """All tables as Markdown."""
    parts = (
        ["### All tasks", "", *summary(studies)] if studies else ["No task has both references."]
    )
    for task, arms in studies.items():
        missing = [name for name in ARMS if named(arms, name) is None]
        parts += ["", f"### {task}", "", *task_table(arms), "", *choices(journals[task])]
        parts += added(journals[task], arms)
        parts += ["", f"Missing: {', '.join(missing)}."] if missing else []
    return parts


def result(studies: Mapping[str, Arms], journals: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """What the result file holds."""
    return {
        task: {
            "settings": journals[task][0]["settings"],
            "devices": sorted({line["device"] for line in journals[task] if "device" in line}),
            "added": [
                {key: line[key] for key in ("arm", "full_rate", "lora_rate", "seed", "device",
                                            "test_loss", "accuracy")}
                for line in journals[task]
                if "arm" in line and line["settings"] != study_of(journals[task])
            ],
            "trainings": sum("arm" in line for line in journals[task]),
            "seconds": round(sum(line.get("seconds", 0.0) for line in journals[task])),
            "missing": [name for name in ARMS if named(arms, name) is None],
            "choices": {
                line["name"].removeprefix("choice "): {
                    "modules": line["modules"], **({"common": line["common"]} if "common" in line
                                                   else {}),
                }
                for line in journals[task]
                if line["name"].startswith("choice ")
            },
            "tuning": {
                line["name"]: line["tuning_loss"]
                for line in journals[task]
                if line.get("seed") == TUNING_SEED
            },
            "arms": {
                arm.name: {
                    "parameters": arm.parameters,
                    "full_rate": arm.rates[0],
                    "lora_rate": arm.rates[1],
                    "seeds": list(arm.losses),
                    "losses": list(arm.losses.values()),
                    "accuracies": list(arm.accuracies.values()),
                    "seconds": round(arm.seconds, 2),
                }
                for arm in arms.values()
            },
        }
        for task, arms in studies.items()
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the journals, print the tables and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--journals", type=Path, default=JOURNALS)
    parser.add_argument("--print", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    paths = sorted(options.journals.glob("*.jsonl"))
    journals = {path.stem: lines_of(path) for path in paths}
    studies = {task: arms_of(lines) for task, lines in journals.items()}
    studies = {task: arms for task, arms in studies.items() if "full" in arms and LORA in arms}
    lines = sections(studies, journals)
    print("\n".join(lines))
    if studies and not options.print:
        publish("real", lines, "real", result(studies, journals))


if __name__ == "__main__":
    main()
