"""Does `hls` of trials choose better than `hls` of gradients, the largest modules, or chance?

`python benchmarks/evidence/movement.py` runs the small base model and the four others on every
task, the arms that decide first; a stopped study goes on. Rates are tuned with the small base
model, and the other base models take them. Those of full fine-tuning and of LoRA of one rank come
from the published result of `study.py`. `movement_tables.py` makes the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, Literal

from arms import Arm, Planner, full_modules, hybrid
from bases import BASES, REPLICAS
from journal import Journal, path_of
from movement_gain import best, gains_and_hls
from published import latest
from ranks import EQUAL_TO, ranks_arm
from replicas import FIRST, LARGEST, largest
from study import PROBES, RANK, asked, opened, scored
from trials import TUNING_SEEDS, Rates, Study, rates_of
from world import fine_tuning_tasks, new_world

Source = Literal["trials", "gradients"]

BY_TRIALS = "hybrid hls of trials"
BY_GRADIENTS = "hybrid hls of gradients"
BY_SHARE = "hybrid hls_share of gradients"
SHARE_APART = "hybrid hls_share of gradients, gate or up"
# The same, but never both gate_proj and up_proj of one MLP, whose outputs are multiplied. This arm
# was added after the small model's `chain` had come out.
APART = "hybrid hls of trials, gate or up"
SPECTRAL = "hybrid spectral"
# The loss that the tails of trials would gain, and that times `hls`; of a gated pair only one.
BY_GAIN = "hybrid gain of trials"
BY_PRODUCT = "hybrid gain times hls of trials"
# The trials of these tables; `movement_longer.py` compares them with longer ones.
SHORT: dict[str, Any] = {"movement": "trial", "trial_steps": 8}
# No plan by size alone is an arm: twelve matrices of an MLP are the largest, all of one size.
DRAWS = 2
# A short search for rates: from where hybrids with large modules had theirs in the earlier study,
# once around the better one.
SEARCH = {
    "hybrid": {"full_rates": (8e-3, 3.2e-2), "lora_rates": (2e-2,), "most": 6},
    "lora": {"lora_rates": (1e-2, 2e-2, 4e-2), "most": 3},
}
SEEDS = (0, 1, 2)
# Those between which LoRA of equal size is interpolated.
UNIFORM_RANKS = (RANK, 6, 4)
# Plans with a rank for each module: what the score is of, and power of the value model.
RANKED: tuple[tuple[Source, float], ...] = (("trials", 1.0), ("trials", 0.25), ("gradients", 0.25))


def ranks_name(source: Source, power: float, equal_to: int) -> str:
    """Name of a plan's arm."""
    return f"ranks hls of {source} power {power:g} for r={equal_to}"


def study_of(base: str, task: str) -> Study:
    """The study of a base model on a task of its world, with a journal of its own."""
    seed = {**BASES, **REPLICAS}[base].seed
    study = opened(base, fine_tuning_tasks(new_world(seed))[task])
    settings = {"rank": RANK, "steps": study.steps, "probes": PROBES, "seeds": list(SEEDS),
                "base": base, "task": task, "batch": study.task.batch_size}  # fmt: skip
    journal = Journal(path_of(base, f"{task}-movement"), settings)
    return replace(study, journal=journal, seeds=SEEDS, curve=1)


def planners_of(study: Study) -> dict[Source, Planner]:
    """What makes plans from trials, and from gradients."""
    sources: dict[Source, dict[str, Any]] = {"trials": SHORT, "gradients": {}}
    return {
        source: Planner(report=scored(study, study.model(), PROBES, **options), rank=RANK)
        for source, options in sources.items()
    }


def deciding_arms(planners: Mapping[Source, Planner]) -> Iterator[Arm]:
    """Full fine-tuning, LoRA, and hybrids with a tenth of the modules, the main ones first."""
    trials, gradients = planners["trials"], planners["gradients"]
    by_trials = trials.scored("hls")
    yield trials.full()
    yield trials.lora(RANK)
    yield hybrid(BY_TRIALS, by_trials)
    yield hybrid(APART, trials.scored("hls", gated_pairs="one"))
    yield hybrid(BY_GRADIENTS, gradients.scored("hls"))
    for draw in range(DRAWS):
        yield largest(trials, f"{LARGEST} {draw}", draw, len(full_modules(by_trials)))
    for rank in UNIFORM_RANKS[1:]:
        yield trials.lora(rank)


def ranks_arms(planners: Mapping[Source, Planner]) -> Iterator[Arm]:
    """Plans with a rank for each module, for the parameters of LoRA of rank 4 and 8, and those."""
    for equal_to in EQUAL_TO:
        yield planners["trials"].lora(equal_to)
    for source, power in RANKED:
        for equal_to in EQUAL_TO:
            arm = ranks_arm(planners[source], "hls", equal_to, power)
            yield replace(arm, name=ranks_name(source, power, equal_to))


def gain_arms(study: Study, planner: Planner) -> Iterator[Arm]:
    """Hybrids by the loss that the tails of trials would gain (`movement_gain.py`)."""
    gains, hls = gains_and_hls(study)
    count = len(full_modules(planner.scored("hls")))
    yield planner.chosen(BY_GAIN, best(gains, count))
    products = {name: max(gain, 0.0) * max(hls[name], 0.0) for name, gain in gains.items()}
    yield planner.chosen(BY_PRODUCT, best(products, count))


def other_arms(planners: Mapping[Source, Planner]) -> Iterator[Arm]:
    """Hybrids by other scores."""
    yield hybrid(BY_SHARE, planners["gradients"].scored("hls_share"))
    yield hybrid(SHARE_APART, planners["gradients"].scored("hls_share", gated_pairs="one"))
    yield hybrid(SPECTRAL, planners["gradients"].scored("spectral"))


def published_rates(task: str) -> dict[str, Rates]:
    """The rates that the earlier study found for full fine-tuning and LoRA of one rank."""
    plain = ("full", *(f"lora r={rank}" for rank in (*UNIFORM_RANKS, *EQUAL_TO)))
    arms = latest("evidence").get(f"{FIRST}, {task}", {})
    first = {name: arms[name]["trials"][0] for name in plain if name in arms}
    return {name: (found["full_rate"], found["lora_rate"]) for name, found in first.items()}


def run_arms(study: Study, arms: Iterable[Arm]) -> None:
    """Run arms: the first base model searches their rates, the others take them."""
    base, task = study.base, study.task.name
    if base == FIRST:
        rates = published_rates(task)
    else:
        rates = {n: rates_of(entry) for n, entry in study_of(FIRST, task).journal.arms.items()}
    for arm in arms:
        if base != FIRST or arm.name in rates:
            study.run(arm, rates[arm.name])
        else:
            study.run(arm, seeds=TUNING_SEEDS[:1], **SEARCH[arm.kind])


def run_part(part: str, base: str, task: str) -> None:
    """Run the arms of a part."""
    study = study_of(base, task)
    print(f"{part}, {base}, {task}", flush=True)
    planners = planners_of(study)
    arms = gain_arms(study, planners["trials"]) if part == GAINS else PARTS[part](planners)
    run_arms(study, arms)


PARTS = {"deciding": deciding_arms, "ranks": ranks_arms, "others": other_arms}
GAINS = "gains"


def main() -> None:
    """Read the command line and run."""
    parts = (*PARTS, GAINS)
    options = asked(__doc__, (FIRST, *REPLICAS), part={"choices": parts, "action": "append"})
    for part, base, task in product(options.part or parts, options.base, options.task):
        run_part(part, base, task)


if __name__ == "__main__":
    main()
