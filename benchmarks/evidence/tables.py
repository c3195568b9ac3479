"""Tables, figure and result file of the study: `python benchmarks/evidence/tables.py`.

Reads the finished arms in `benchmarks/.models/evidence`, writes the dated result file and the
figure, and puts the tables into `README.md` between its markers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from analysis import (
    Entry,
    Figure,
    against,
    agreement,
    gap,
    gap_recovered,
    lora_of_size,
    losses,
    mean,
    pooled,
    self_agreement,
)  # fmt: skip
from bases import BASES, REPLICAS
from figure import draw
from journal import REWARDED, lines_of, path_of
from ranks_table import ranks_table
from replicas import FIRST
from replicas_table import finished_replicas, replicas_table
from study import DRAWS, GRADIENT_SCORES, RANK, UNIFORM_RANKS, WEIGHT_SCORES
from world import fine_tuning_tasks, new_world

sys.path.append(str(Path(__file__).resolve().parent.parent))
from machine import write_result

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
RANDOM, EQUAL = "hybrid random", "hybrid random of equal size"

Arms = dict[str, Entry]
Studies = dict[tuple[str, str], Arms]


def finished() -> Studies:
    """The arms of each base and task, by name."""
    found = {}
    for base in BASES:
        for task in (*fine_tuning_tasks(new_world()), REWARDED):
            arms = {line["name"]: line for line in lines_of(path_of(base, task))}
            if arms:
                for drawn in (RANDOM, EQUAL):
                    draws = [arms[name] for place in range(DRAWS)
                             if (name := f"{drawn} {place}") in arms]  # fmt: skip
                    if len(draws) == DRAWS:
                        arms[drawn] = pooled(draws)
                found[base, task] = arms
    return found


def uniform(arms: Arms) -> list[Entry]:
    """LoRA of the ranks of the study."""
    return [arms[f"lora r={rank}"] for rank in UNIFORM_RANKS if f"lora r={rank}" in arms]


def arm_rows(arms: Arms) -> Iterable[tuple[str, float, float, Figure, Figure]]:
    """Name, parameters, loss, gap recovered, and logarithm of loss over LoRA of equal size."""
    lora, full, plain = arms[f"lora r={RANK}"], arms["full"], uniform(arms)
    for name, entry in arms.items():
        if "trials" in entry:
            peer = lora_of_size(plain, entry["parameters"])
            yield (
                name,
                entry["parameters"],
                float(losses(entry).mean()),
                gap_recovered(entry, lora, full),
                against(entry, peer),
            )


def arm_table(arms: Arms, *, lags: bool) -> list[str]:
    """Every arm of one base and task; without a gap where LoRA does not lag."""
    lines = [
        "| arm | trained parameters | test loss | gap recovered | against LoRA of equal size |",
        "|---|---|---|---|---|",
    ]
    for name, size, loss, recovered, peer in arm_rows(arms):
        known = str(recovered) if lags else "no gap"
        if name == f"lora r={RANK}":
            known = "reference"
        lines.append(f"| {name} | {size:,.0f} | {loss:.4f} | {known} | {_percent(peer)} |")
    return lines


def score_table(studies: Studies) -> list[str]:
    """Gap recovered by hybrids of every score, task by task and on average."""
    names = [f"hybrid {score}" for score in (*GRADIENT_SCORES, *WEIGHT_SCORES)]
    names += [RANDOM, EQUAL, "hybrid oracle", "hybrid hls after a quarter of a LoRA run",
              "hybrid hls after a LoRA run", "hybrid tail of a short update"]  # fmt: skip
    heads = [f"{base}, {task}" for base, task in studies]
    lines = [f"| chosen by | {' | '.join(heads)} | mean |", "|---" * (len(heads) + 2) + "|"]
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
    lines = [f"| hybrid | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in names:
        cells = []
        for arms in studies.values():
            if name not in arms:
                cells.append("")
                continue
            peer = lora_of_size(uniform(arms), arms[name]["parameters"])
            cells.append(_percent(against(arms[name], peer)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def oracle_table(studies: Studies) -> list[str]:
    """Agreement of each score with the gain of each module alone."""
    known = {key: arms["oracle"] for key, arms in studies.items() if "oracle" in arms}
    heads = [f"{base}, {task}" for base, task in known]
    lines = [f"| tau with the oracle | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
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


def sections(studies: Studies) -> str:
    """All tables as Markdown."""
    tasks = tuple(fine_tuning_tasks(new_world()))
    whole = {
        (base, task): arms
        for (base, task), arms in studies.items()
        if RANDOM in arms and task != REWARDED
    }
    parts = ["### Gap recovered at 10 % of the modules", "", *score_table(whole), "",
             "### Against plain LoRA with as many parameters", "", *rival_table(whole), "",
             "### The same with other base models in other worlds", "",
             *replicas_table(finished_replicas(tasks)), "",
             "### A rank for each module against one rank of equal cost", "",
             *ranks_table({task: studies[FIRST, task] for task in tasks}), "",
             "### Scores against the oracle", "", *oracle_table(whole), ""]  # fmt: skip
    for (base, task), arms in studies.items():
        if "full" in arms and f"lora r={RANK}" in arms:
            lag = gap(arms[f"lora r={RANK}"], arms["full"])
            unit = "of the reward" if task == REWARDED else "nats per counted token"
            parts += [f"### {base}, {task}: every arm", "",
                      f"LoRA of rank {RANK} lags full fine-tuning by {lag.value:.4f} "
                      f"[{lag.low:.4f}, {lag.high:.4f}] {unit}.", "",
                      *arm_table(arms, lags=lag.low > 0), ""]  # fmt: skip
    return "\n".join(parts)


def result(studies: Studies) -> dict[str, Any]:
    """What the result file holds: everything but the losses of single examples."""
    repeated = {
        (base, task): {line["name"]: line for line in lines_of(path_of(base, task))}
        for base in REPLICAS
        for task in fine_tuning_tasks(new_world())
    }
    return {
        f"{base}, {task}": {name: _without_examples(entry) for name, entry in arms.items()}
        for (base, task), arms in {**trained(studies), **repeated}.items()
        if arms
    }


def trained(studies: Studies) -> Studies:
    """Without what was pooled."""
    return {
        key: {name: entry for name, entry in arms.items() if name not in (RANDOM, EQUAL)}
        for key, arms in studies.items()
    }


def _without_examples(entry: Entry) -> dict[str, Any]:
    kept = {key: value for key, value in entry.items() if key not in ("trials", "name")}
    if "trials" in entry:
        kept["trials"] = [
            {
                "seed": trial["trial"]["seed"],
                "full_rate": trial["trial"]["full_rate"],
                "lora_rate": trial["trial"]["lora_rate"],
                "loss": round(float(np.mean(trial["losses"])), 6),
                "accuracy": trial["accuracy"],
                # As text, one line each: there are thousands.
                "curve": " ".join(map(str, trial["curve"])),
            }
            for trial in entry["trials"]
        ]
    return kept


def _percent(figure: Figure) -> str:
    digits = 0 if np.expm1(np.abs([figure.low, figure.high])).max() > 0.1 else 1
    low, value, high = (
        f"{100 * np.expm1(x):+.{digits}f}" for x in (figure.low, figure.value, figure.high)
    )
    return f"{value} % [{low}, {high}]"


def main(arguments: Sequence[str]) -> None:
    """Write everything."""
    studies = finished()
    text = sections(studies)
    if "--print" in arguments:
        print(text)
        return
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    print(write_result("evidence", result(studies)))
    print(draw(trained(studies)))


if __name__ == "__main__":
    main(sys.argv[1:])
