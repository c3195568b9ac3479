"""Do longer trials on more examples choose better, and how good are the last layers alone?

`python benchmarks/evidence/movement_longer.py` trains the small base model and the four others on
every task and writes a table into `README.md` and a result file; a stopped study goes on. Rates
are searched with the small base model as in `movement.py`, and the other base models take them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from arm_table import result_of
from arms import Arm, Planner, full_modules, hybrid
from bases import REPLICAS
from movement import (
    APART,
    BY_TRIALS,
    DRAWS,
    UNIFORM_RANKS,
    run_arms,
    study_of,
)
from movement_tables import (
    TASKS,
    arms_of,
    excess_table,
    finished,
    recovered_table,
    short,
)
from published import heading, publish
from replicas import FIRST, LARGEST, largest
from study import PROBES, RANK, asked, scored
from trials import Study

from hlscore.settings.plan import PlanSettings

# Number of examples and options of `rank` of each way to score.
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    BY_TRIALS: (PROBES, {"trial_steps": 8}),
    "hybrid hls of trials of 64 steps": (PROBES, {"trial_steps": 64}),
    "hybrid hls of trials of 64 steps, 512 examples": (2 * PROBES, {"trial_steps": 64}),
}
BASES = (FIRST, *REPLICAS)
ONE_OF_PAIR = APART.removeprefix(BY_TRIALS)
LAST_LAYERS = "hybrid largest of the last layers"
NAMES = (*(f"{way}{rule}" for way in WAYS for rule in ("", ONE_OF_PAIR)), LAST_LAYERS, LARGEST)


def arms(study: Study) -> Iterator[Arm]:
    """Full fine-tuning, LoRA, hybrids by each way to score, and those without a score."""
    planners = {
        way: Planner(
            report=scored(study, study.model(), probes, movement="trial", **options), rank=RANK
        )
        for way, (probes, options) in WAYS.items()
    }
    planner = planners[BY_TRIALS]
    yield planner.full()
    for rank in UNIFORM_RANKS:
        yield planner.lora(rank)
    for way, by_way in planners.items():
        yield hybrid(way, by_way.scored("hls"))
        yield hybrid(f"{way}{ONE_OF_PAIR}", by_way.scored("hls", gated_pairs="one"))
    last = planner.plan(PlanSettings(baseline="last-layers", rank=RANK, gated_pairs="both"))
    yield hybrid(LAST_LAYERS, last)
    for draw in range(DRAWS):
        yield largest(planner, f"{LARGEST} {draw}", draw, len(full_modules(last)))


def publish_tables() -> None:
    """Write what base models have finished on every task."""
    cells = {(base, task): arms_of(base, task) for base, task in product(BASES, TASKS)}
    bases = finished(cells, NAMES)
    cells = {(base, task): cells[base, task] for task, found in bases.items() for base in found}
    lines = [*recovered_table(cells, bases, NAMES), "", *excess_table(cells, bases, NAMES), ""]
    lines += heading("chosen", *(name.removeprefix("hybrid ") for name in WAYS))
    for (base, task), found in cells.items():
        chosen = (", ".join(map(short, found[way]["full"])) for way in WAYS)
        lines.append(f"| {base}, {task} | {' | '.join(chosen)} |")
    content = {
        f"{base}, {task}": result_of({name: found[name] for name in found if name != LARGEST})
        for (base, task), found in cells.items()
    }
    publish("longer", lines, "evidence_movement_longer", content)


def main() -> None:
    """Read the command line and run."""
    options = asked(__doc__, BASES)
    for base, task in product(options.base, options.task):
        study = study_of(base, task)
        print(f"{base}, {task}", flush=True)
        run_arms(study, arms(study))
    publish_tables()


if __name__ == "__main__":
    main()
