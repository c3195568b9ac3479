"""What is a rank worth? Plans with a rank for each module, against one rank for all of equal cost.

`python benchmarks/evidence/ranks.py --task facts`; without options every task of the small model.
The value of an option is the gradient energy that it reaches, to a power: 1 is the first-order
view, less levels off sooner. Arms go into the journals of `study.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from arms import Arm, Planner, full_modules, planned
from study import PROBES, RANK, UNIFORM_RANKS, asked, opened, scored
from trials import Study
from world import fine_tuning_tasks, new_world

from hlscore.planning.baselines import nearest_rank
from hlscore.settings import PlanSettings

BASE = "small"
POWERS = (1.0, 0.25, 0.5)
EVEN_POWER = 0.25
SCORES = ("hls", "tail", "l1_adam")
# The uniform ranks whose parameters the plans may spend.
EQUAL_TO = (4, 8)


def ranks_arm(
    planner: Planner, score: str, equal_to: int, power: float, ranks: Sequence[int] = UNIFORM_RANKS
) -> Arm:
    """The solver's choice among ranks and full, for the parameters of LoRA of one rank."""
    each = sum(row.in_features + row.out_features for row in planner.report.candidates)
    plan = planner.plan(
        PlanSettings(
            score=score, budget=f"{each * equal_to / 1000!r}k", rank=planner.rank,
            ranks=tuple(ranks), value_power=power,
        )
    )  # fmt: skip
    kind = "hybrid" if full_modules(plan) else "lora"
    return planned(name_of(score, equal_to, power), kind, plan)


def even_arm(planner: Planner, equal_to: int) -> Arm | None:
    """One rank for the modules that the plan of `hls` trains, at its cost: is it the choice alone?

    Returns:
        The arm; `None` where the plan leaves no module out.
    """
    ranks = ranks_arm(planner, "hls", equal_to, EVEN_POWER).ranks
    silent = [module for module, rank in ranks.items() if rank == 0]
    if not silent:
        return None
    rows = planner.report.candidates
    kept = [row for row in rows if row.module not in silent]
    limit = equal_to * sum(row.in_features + row.out_features for row in rows)
    plan = planner.plan(
        PlanSettings(
            baseline="all-lora", score="random", rank=nearest_rank(limit, kept),
            locks=tuple(f"{module}=frozen" for module in silent),
        )
    )  # fmt: skip
    return planned(f"one rank where hls finds a gain for r={equal_to}", "lora", plan)


def name_of(score: str, equal_to: int, power: float) -> str:
    """Name of a plan's arm."""
    return f"ranks {score} power {power:g} for r={equal_to}"


def run_ranks(studies: Sequence[Study], scores: Sequence[str], powers: Sequence[float]) -> None:
    """Train the plans of every power, cost and score, task by task."""
    planners = [Planner(report=scored(item, item.model(), PROBES), rank=RANK) for item in studies]
    for power, equal_to, score in product(powers, EQUAL_TO, scores):
        for study, planner in zip(studies, planners, strict=True):
            study.run(ranks_arm(planner, score, equal_to, power))
    for equal_to in EQUAL_TO:
        for study, planner in zip(studies, planners, strict=True):
            arm = even_arm(planner, equal_to)
            if arm is not None:
                study.run(arm)


def main() -> None:
    """Read the command line and run."""
    options = asked(
        __doc__, (BASE,), score={"choices": SCORES, "action": "append"},
        power={"type": float, "action": "append"},
    )  # fmt: skip
    tasks = fine_tuning_tasks(new_world())
    run_ranks(
        [opened(BASE, tasks[name]) for name in options.task],
        options.score or SCORES,
        options.power or POWERS,
    )


if __name__ == "__main__":
    main()
