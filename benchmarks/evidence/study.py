"""The evidence study: does training a few chosen modules in full pay, and which score chooses well?

`python benchmarks/evidence/study.py --base small --task facts` runs all arms of one task; without
options every base and task. Finished arms are kept in `benchmarks/.models/evidence`, and a stopped
study goes on. `tables.py` makes the tables.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from adaptive import train_adalora
from arms import BASELINES, Arm, Planner, full_modules, hybrid, start_values
from bases import BASES
from journal import Journal, path_of
from published import parsed
from stacked import Tensors, Trained, Trial, example_losses
from torch import nn
from transformers import LlamaForCausalLM
from trials import STEPS, TUNING_SEEDS, Study, best_of, keep, rates_of, trials_at, tune
from world import Task, encode, fine_tuning_tasks, new_world, tokenizer

import hlscore
from hlscore.records import ScoreReport
from hlscore.scores.rows import stratified_scores

RANK = 2
UNIFORM_RANKS = (1, 2, 3, 4, 6, 8, 12, 16)
BUDGETS = ("0.05", "0.2")
PROBES = 256
OTHER_PROBES = (32, 1024)
ORACLE_SEEDS = (100, 101, 102)
DRAWS = 5
RANDOM, EQUAL = "hybrid random", "hybrid random of equal size"
HELD_OUT = 512
GRADIENT_SCORES = ("hls", "tail", "grad_norm", "taylor", "rgn", "l1_adam")
WEIGHT_SCORES = ("snr", "spectral", "kappa")


def scored(
    study: Study, model: LlamaForCausalLM, probes: int, *, draw: int = 0, **options: Any
) -> ScoreReport:
    """Scores of a model on examples of the task.

    Args:
        draw: Other numbers draw other examples; 1 and 2 draw those that are held out.
        **options: Of `hlscore.rank`; without them the scores are those of gradients.
    """
    settings = {"movement": "gradient", "weight_scores": True, **options}
    return hlscore.rank(
        model.cpu(), tokenizer(), data=study.rows(draw, probes), rank=RANK, ranks=UNIFORM_RANKS,
        samples=0, batch_size=64, checkpointing=False, estimator="exact", **settings,
    ).report  # fmt: skip


def run_adalora(study: Study, planner: Planner) -> None:
    """AdaLoRA at the rank of the study."""
    name = f"adalora r={RANK}"
    if name in study.journal.arms:
        return
    began = time.monotonic()
    modules = [row.module for row in planner.report.candidates]

    def run(trials: list[Trial]) -> list[Trained]:
        return train_adalora(
            study.model, modules, trials, study.batch, rank=RANK, steps=study.steps,
            tuning=study.tuning, test=study.test,
        )[0]  # fmt: skip

    tuned = tune("lora", run)
    found, size = train_adalora(
        study.model, modules, trials_at(best_of(tuned)), study.batch,
        rank=RANK, steps=study.steps, tuning=study.tuning, test=study.test,
    )  # fmt: skip
    arm = replace(planner.lora(RANK), name=name)
    keep(study.journal, arm, found, began, tuned, size)


def random_arm(planner: Planner, draw: int) -> Arm:
    """As much in full as the plan of `hls`, drawn among modules of each kind and size in turn."""
    rows = planner.report.candidates
    order = stratified_scores(rows, seed=draw)
    count = len(full_modules(planner.scored("hls")))
    chosen = sorted(order, key=lambda module: -order[module])[:count]
    return planner.chosen(f"{RANDOM} {draw}", chosen)


def equal_arm(planner: Planner, draw: int) -> Arm:
    """Modules drawn as for `random_arm`, of as many parameters as the plan of `hls` has in full."""
    return planner.drawn(
        f"{EQUAL} {draw}", seed=100 + draw, params=planner.scored("hls").totals.full_params
    )


def oracle(study: Study, planner: Planner) -> None:
    """Each module alone in full, LoRA on the others: what does it gain over LoRA?"""
    if "oracle" in study.journal.arms:
        return
    began = time.monotonic()
    rates = study.journal.arms["hybrid hls"]["trials"][0]["trial"]
    full, lora = rates_of(study.journal.arms["hybrid hls"])
    trials = [Trial(seed=seed, full_rate=full, lora_rate=lora) for seed in ORACLE_SEEDS]
    reference, _ = study.train(planner.lora(RANK), trials)
    base = [np.mean(item.losses) for item in reference]
    gains = {}
    for row in planner.report.candidates:
        found, _ = study.train(planner.chosen("", [row.module]), trials)
        gains[row.module] = [float(b - np.mean(f.losses)) for b, f in zip(base, found, strict=True)]
    columns = (*GRADIENT_SCORES, *WEIGHT_SCORES, "random", "n_params")
    study.journal.add(
        "oracle",
        {
            "gains": gains,
            "kinds": {row.module: row.kind for row in planner.report.candidates},
            "scores": {
                row.module: {name: getattr(row, name) for name in columns}
                for row in planner.report.candidates
            },
            "rates": rates,
            "seconds": round(time.monotonic() - began, 1),
        },
    )
    print(f"oracle {time.monotonic() - began:.0f} s", flush=True)


def moved(study: Study, planner: Planner, rate: float) -> list[str]:
    """As many modules as `hls` takes, those whose short update has the largest tail."""
    arm = planner.full()
    trial = Trial(seed=TUNING_SEEDS[0], full_rate=rate, lora_rate=0.0)
    _, values = study.train(arm, [trial], steps=study.steps // 4)
    before = start_values(arm, study.model, 0)
    tails = {}
    for name, value in values[0].items():
        spectrum = torch.linalg.svdvals((value - before[name]).double())
        tails[name] = float(spectrum[RANK:].square().sum())
    count = len(full_modules(planner.scored("hls")))
    best = sorted(tails, key=lambda name: -tails[name])[:count]
    return [
        row.module
        for row in planner.report.candidates
        if any(f"{row.module}." in name for name in best)
    ]


def merged(wrapped: nn.Module, values: Tensors) -> LlamaForCausalLM:
    """The model that a LoRA training left, adapters merged into its weights."""
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if name in values:
                parameter.copy_(values[name])
    return wrapped.merge_and_unload()


def run_study(base: str, task: Task, device: str) -> None:
    """Run all arms of a base model on a task."""
    study = opened(base, task, device)
    arms = study.journal.arms
    planner = Planner(report=scored(study, study.model(), PROBES), rank=RANK)
    loss = float(example_losses(study.model(), study.test)[0].mean())
    print(f"{base}, {task.name}: no training {loss:.4f}, floor {task.floor}", flush=True)

    # Full fine-tuning, LoRA of many ranks, other methods of PEFT.
    study.run(planner.full())
    for rank in UNIFORM_RANKS:
        study.run(planner.lora(rank))
    matched = planner.matched(planner.scored("hls"))
    study.run(matched)
    for method in BASELINES:
        study.run(planner.peer(method))
        study.run(replace(planner, rank=matched.rank).peer(method))
    run_adalora(study, planner)

    # Hybrids chosen by every score at 10 %, by stratified random draws, by what gained most alone.
    for score in (*GRADIENT_SCORES, *WEIGHT_SCORES):
        study.run(hybrid(f"hybrid {score}", planner.scored(score)))
    for draw in range(DRAWS):
        study.run(random_arm(planner, draw))
    oracle(study, planner)
    gains, count = arms["oracle"]["gains"], len(arms["hybrid hls"]["full"])
    best = sorted(gains, key=lambda module: -np.mean(gains[module]))[:count]
    study.run(planner.chosen("hybrid oracle", best))

    # Scores of a model that was trained a little first.
    _, rate = rates_of(arms[f"lora r={RANK}"])
    lora = planner.lora(RANK)
    for name, steps in (("quarter of a LoRA run", study.steps // 4), ("LoRA run", study.steps)):
        label = f"hybrid hls after a {name}"
        if label not in arms:
            trial = Trial(seed=TUNING_SEEDS[0], full_rate=0.0, lora_rate=rate)
            _, values = study.train(lora, [trial], steps=steps)
            warm = merged(lora.wrap(study.model()), values[0])
            plan = replace(planner, report=scored(study, warm, PROBES)).scored("hls")
            study.run(planner.chosen(label, full_modules(plan)))

    # The modules whose change in a quarter of a full fine-tuning has the largest tail.
    label = "hybrid tail of a short update"
    if label not in arms:
        rate, _ = rates_of(arms["full"])
        study.run(planner.chosen(label, moved(study, planner, rate)))

    for draw in range(DRAWS):
        study.run(equal_arm(planner, draw))

    # Other budgets, ranks and numbers of probes.
    for budget in BUDGETS:
        study.run(hybrid(f"hybrid hls {budget}", planner.scored("hls", budget=budget)))
    for rank in (4, 8):
        plan = planner.scored("hls", rank=rank)
        study.run(hybrid(f"hybrid hls r={rank}", plan))
        study.run(planner.matched(plan))
    for probes in OTHER_PROBES:
        plan = replace(planner, report=scored(study, study.model(), probes)).scored("hls")
        study.run(planner.chosen(f"hybrid hls {probes} probes", full_modules(plan)))


def opened(base: str, task: Task, device: str = "cpu") -> Study:
    """The study of a base model on a task, with what is finished of it."""
    settings = {
        "rank": RANK, "steps": STEPS[task.name], "probes": PROBES, "held_out": HELD_OUT,
        "base": base, "task": task.name, "batch": task.batch_size,
    }  # fmt: skip
    draw = np.random.default_rng
    return Study(
        base=base, task=task, device=device, journal=Journal(path_of(base, task.name), settings),
        tuning=encode(task.draw(draw((7, 1)), HELD_OUT // 2)),
        test=encode(task.draw(draw((7, 2)), HELD_OUT)),
    )  # fmt: skip


def asked(description: str | None, bases: Iterable[str], **more: Any) -> Namespace:
    """The command line of a part of the study: base models, tasks, and more options."""
    chosen = {
        name: {"choices": known, "action": "append"}
        for name, known in (("base", [*bases]), ("task", [*fine_tuning_tasks(new_world())]))
    }
    options = parsed(description, **chosen, **more)
    options.base = options.base or chosen["base"]["choices"]
    options.task = options.task or chosen["task"]["choices"]
    torch.set_num_threads(1)
    return options


def main() -> None:
    """Read the command line and run."""
    options = asked(__doc__, BASES, device="cpu")
    for base, task in product(options.base, options.task):
        run_study(base, fine_tuning_tasks(new_world())[task], options.device)


if __name__ == "__main__":
    main()
