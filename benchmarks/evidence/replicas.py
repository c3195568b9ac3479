"""The same arms with other base models in other worlds: was the first one luck?

`python benchmarks/evidence/replicas.py` trains the small model from other first weights in other
worlds, and runs the arms that matter at the rates that `study.py` found for them with the first
model (no arm is tuned again; its journal must be there).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from arms import Arm, Planner, full_modules, hybrid
from bases import REPLICAS
from journal import lines_of, path_of
from ranks import EQUAL_TO, ranks_arm
from study import EQUAL, PROBES, RANK, asked, moved, opened, scored
from trials import Rates, rates_of
from world import fine_tuning_tasks, new_world

FIRST = "small"
UNIFORM_RANKS = (2, 3, 4, 6, 8, 12)
SCORES = ("hls", "l1_adam", "spectral")
# Plans with a rank for each module: score and power of the value model.
RANKED = (("hls", 0.25), ("hls", 1.0))
# Random draws: of as many parameters as `hls` takes, and of the largest modules.
DRAWS = 3
LARGEST, MOVED = "hybrid random of the largest", "hybrid tail of a short update"


def replicated(planner: Planner) -> Iterator[tuple[Arm, str]]:
    """The arms, each with the arm of the first model whose rates it takes."""
    ranked = [
        ranks_arm(planner, score, equal_to, power)
        for score, power in RANKED
        for equal_to in EQUAL_TO
    ]
    for arm in (planner.full(), *(planner.lora(rank) for rank in UNIFORM_RANKS), *ranked):
        yield arm, arm.name
    for score in SCORES:
        name = f"hybrid {score}"
        yield hybrid(name, planner.scored(score)), name
    plan = planner.scored("hls")
    for draw in range(DRAWS):
        name = f"{EQUAL} {draw}"
        yield planner.drawn(name, seed=100 + draw, params=plan.totals.full_params), name
        # The largest modules are those that `spectral` takes.
        name = f"{LARGEST} {draw}"
        yield largest(planner, name, draw, len(full_modules(plan))), "hybrid spectral"


def largest(planner: Planner, name: str, draw: int, count: int) -> Arm:
    """So many modules drawn at random among those with the most parameters."""
    rows = planner.report.candidates
    most = max(row.n_params for row in rows)
    generator = torch.Generator().manual_seed(draw)
    names = [row.module for row in rows if row.n_params == most]
    order = torch.randperm(len(names), generator=generator).tolist()
    return planner.chosen(name, [names[place] for place in order[:count]])


def first_rates(task: str) -> dict[str, Rates]:
    """The rates of every arm of the first model."""
    lines = lines_of(path_of(FIRST, task))
    return {line["name"]: rates_of(line) for line in lines if "trials" in line}


def run_replica(base: str, seed: int, task_name: str) -> None:
    """Run the arms of one base model on one task of its world."""
    rates = first_rates(task_name)
    study = opened(base, fine_tuning_tasks(new_world(seed))[task_name])
    print(f"{base}, {task_name}", flush=True)
    planner = Planner(report=scored(study, study.model(), PROBES), rank=RANK)
    for arm, taken in replicated(planner):
        study.run(arm, rates[taken])
    if MOVED not in study.journal.arms:
        modules = moved(study, planner, rates["full"][0])
        study.run(planner.chosen(MOVED, modules), rates[MOVED])


def main() -> None:
    """Read the command line and run."""
    options = asked(__doc__, REPLICAS)
    for base, task in product(options.base, options.task):
        run_replica(base, REPLICAS[base].seed, task)


if __name__ == "__main__":
    main()
