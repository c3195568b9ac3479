"""How far does the choice of trials depend on their settings, and are its standard errors right?

`python benchmarks/evidence/movement_choices.py` scores the small base model on every task with
trials of many settings; nothing is trained to the end. What is finished is kept beside the
journals of the study. `movement_tables.py` makes the tables.
"""

from __future__ import annotations

from typing import Any

import torch
from arms import start_values
from journal import Journal, path_of
from movement import planners_of, study_of
from movement_gain import cross_fitted_tail
from replicas import FIRST
from stacked import Trial, train
from study import PROBES, RANK, scored
from trials import Study
from world import encode, fine_tuning_tasks, new_world

from hlscore.records import ScoreReport

TRIALS, STEPS = 4, 8
# Each differs from the default in one thing; a factor multiplies the rate that was found.
SETTINGS: dict[str, dict[str, Any]] = {
    "other probes": {"draw": 10},
    "sign": {"trial_optimizer": "sign"},
    "rms": {"trial_optimizer": "rms"},
    "16 steps": {"trial_steps": 16},
    "32 steps": {"trial_steps": 32},
    "2 trials": {"trials": 2},
    "8 trials": {"trials": 8},
    "rate / 2": {"factor": 0.5},
    "rate x 2": {"factor": 2.0},
    "rate x 4": {"factor": 4.0},
    "bfloat16": {"dtype": torch.bfloat16},
}
# Scores of the same run, and of gradients.
PLAIN, ADAMW = "plain tail", "AdamW"
GRADIENTS = {"hls of gradients": "hls", "hls_share of gradients": "hls_share"}
# Probe sets that standard errors are compared over, and the trials of each.
SETS, CALIBRATED = 8, (4, 8)
FIRST_SET = 20

Scores = dict[str, float]


def column(report: ScoreReport, name: str) -> Scores:
    """A score of every module, by name; 0 where a module was not reached."""
    return {row.module: float(getattr(row, name) or 0.0) for row in report.candidates}


def by_trials(study: Study, *, dtype: torch.dtype = torch.float32, **options: Any) -> ScoreReport:
    """The report of trials with these options of `hlscore.rank`."""
    settings = {"movement": "trial", "trials": TRIALS, "trial_steps": STEPS,
                "weight_scores": False, **options}  # fmt: skip
    return scored(study, study.model().to(dtype), PROBES, **settings)


def by_adamw(study: Study, rate: float) -> Scores:
    """`hls` of trials by AdamW: the trainings of the study, on the probes, cut short."""
    arm = planners_of(study)["gradients"].full()
    rows, size = study.rows(0, PROBES), PROBES // (TRIALS * STEPS)
    _, values = train(
        arm.wrap(study.model()),
        [Trial(seed=number, full_rate=rate, lora_rate=0.0) for number in range(TRIALS)],
        lambda number, step: encode(rows[number * STEPS * size :][(step - 1) * size : step * size]),
        steps=STEPS, measured=(), tuning=study.tuning, test=study.test,
    )  # fmt: skip
    before, found = start_values(arm, study.model, 0), {}
    for module in arm.full:
        (name,) = (name for name in values if f"{module}." in name)
        updates = (before[name] - values[name].detach()).double()
        a, b = updates[: TRIALS // 2].mean(0), updates[TRIALS // 2 :].mean(0)
        found[module] = cross_fitted_tail(a, b, RANK)
    return found


def run_task(task: str) -> None:
    """Score the small base model on a task with every setting, and with every probe set."""
    study = study_of(FIRST, task)
    settings = {"probes": PROBES, "trials": TRIALS, "steps": STEPS, "rank": RANK}
    journal = Journal(path_of(FIRST, f"{task}-choices"), settings)
    if "default" not in journal.arms:
        report = by_trials(study)
        scores, errors = column(report, "hls"), column(report, "hls_stderr")
        journal.add("default", {"scores": scores, "errors": errors, "rate": report.run.trial_rate})
        journal.add(PLAIN, {"scores": column(report, "tail")})
    rate = journal.arms["default"]["rate"]
    for name, options in SETTINGS.items():
        if name not in journal.arms:
            given = dict(options)
            if "factor" in given:
                given["trial_rate"] = rate * given.pop("factor")
            report = by_trials(study, **given)
            journal.add(name, {"scores": column(report, "hls"), "rate": report.run.trial_rate})
    if ADAMW not in journal.arms:
        journal.add(ADAMW, {"scores": by_adamw(study, rate), "rate": rate})
    gradients = scored(study, study.model(), PROBES)
    for name, score in GRADIENTS.items():
        if name not in journal.arms:
            journal.add(name, {"scores": column(gradients, score)})
    for trials in CALIBRATED:
        for number in range(SETS):
            name = f"{trials} trials, probe set {number}"
            if name not in journal.arms:
                report = by_trials(study, draw=FIRST_SET + number, trials=trials, trial_rate=rate)
                scores, errors = column(report, "hls"), column(report, "hls_stderr")
                journal.add(name, {"scores": scores, "errors": errors})
    print(f"{task}: {len(journal.arms)} settings", flush=True)


def main() -> None:
    """Run every task."""
    torch.set_num_threads(1)
    for task in fine_tuning_tasks(new_world()):
        run_task(task)


if __name__ == "__main__":
    main()
