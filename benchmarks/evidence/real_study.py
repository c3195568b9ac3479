"""Does a hybrid pay on a real model? SmolLM2-135M-Instruct on one task of `real_tasks.py`.

`python benchmarks/evidence/real_study.py --task base_conversion --minutes 9` trains arm after arm,
the ones that decide first, stops before the time is over and goes on when it is called again. Every
finished training is a line of `benchmarks/results/real/TASK.jsonl`. `--find` trains in
full and with LoRA only, at two rates each and one seed, to find tasks on which LoRA lags; its
trainings count for the study too. `real_tables.py` makes the tables.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from arms import BASELINES, Arm, Planner, full_modules, hybrid
from journal import Journal, lines_of
from peft.tuners.lora.layer import LoraLayer
from published import RESULTS
from ranks import ranks_arm
from real_tasks import FAMILIES, FOLDER, MODELS, Row, read
from real_training import Examples, Linear, Stack, Trial, linears_of, tensors_of
from replicas import largest
from study import random_arm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import hlscore
from hlscore.artifacts.plan import Plan
from hlscore.artifacts.report import read_report, write_report
from hlscore.inputs.formats import example_set
from hlscore.probes.encode import encode
from hlscore.probes.units import ProbeExample
from hlscore.records import ScoreReport
from hlscore.settings import CaptureSettings, DataSettings
from hlscore.settings.plan import GatedPairs, PlanSettings

RANK = 8
RANKS = (1, 2, 4, 8, 16, 32, 64)
SAMPLES = 256
BATCH = 32
STEPS = {"cuda": 250, "cpu": 40}
TUNING_SEED, SEEDS = 0, (1, 2, 3)
# Learning rates in half decades: -7 is 10 ** -3.5.
FULL_RATES, LORA_RATES = (-10, -9, -8, -7), (-8, -7, -6, -5)
FIND_RATES = {"full": (-8, -7), "lora": (-6, -5)}
# Rates beyond those that an arm begins with.
MOST_EXTENSIONS = 3
# Trainings that run as one; a CPU gains nothing by it.
TOGETHER = {"cuda": 4, "cpu": 1}
GRADIENTS, TRIALS, WEIGHTS = "gradients", "trials", "weights"
FINISHED = "full fine-tuning"
JOURNALS = RESULTS / "real"
# The arms of the study in their order; `equal size` stands for the rank of equal size.
EQUAL_SIZE = "equal size"
ONE_OF_PAIR = ", gate or up"
# Of a hybrid: another budget of modules, or other adapters.
OTHER = re.compile(r", (budget|rank|alpha) ([\d.]+)")
# The best module of each of as many layers as the plan has modules: no crowding.
ONE_A_LAYER = ", one a layer"
GATE_OR_UP = f"hybrid hls of {TRIALS}{ONE_OF_PAIR}"
# Of the scores that the folder holds, where the journal has modules of earlier ones.
SCORED_AGAIN = f"hybrid hls of {TRIALS}, scored again"
# By the weight update of a finished full fine-tuning: what short trials try to foresee.
BY_FINISHED = f"hybrid hls of {FINISHED}"
ARMS = (
    "full", f"lora r={RANK}", "hybrid hls of trials", f"lora {EQUAL_SIZE}",
    GATE_OR_UP, "hybrid hls of gradients",
    "hybrid random of the largest 0", "hybrid random of the largest 1",
    "hybrid hls_share of gradients", "hybrid spectral", "ranks hls of trials power 1 for r=8",
    "ranks hls of trials power 0.25 for r=8", "ranks hls of gradients power 0.25 for r=8",
    "hybrid random 0", "hybrid random 1", *(f"{name} r={RANK}" for name in BASELINES),
    *(f"{name} {EQUAL_SIZE}" for name in BASELINES),
)  # fmt: skip
# Ways to score before a training, and the options of `rank` that each stands for; `examples` are
# `SAMPLES` unless told otherwise.
WAYS: dict[str, dict[str, Any]] = {
    GRADIENTS: {"movement": "gradient"},
    TRIALS: {"movement": "trial", "trial_steps": 8},
    **{
        f"{TRIALS}, rate {rate}": {"movement": "trial", "trial_rate": rate, "trial_steps": 8}
        for rate in (0.0003, 0.001, 0.003)
    },
    **{
        f"{TRIALS} of 32 steps, rate {rate}": {
            "movement": "trial", "trial_rate": rate, "trial_steps": 32
        }
        for rate in (0.0003, 0.001)
    },
    f"4 {TRIALS} of 64 steps, 512 examples": {
        "movement": "trial", "trial_steps": 64, "examples": 512
    },
    **{
        f"{trials} {TRIALS} of {steps} steps, {examples} examples, rate {rate}": {
            "movement": "trial", "trial_rate": rate, "trial_steps": steps, "trials": trials,
            "examples": examples,
        }
        for trials, steps, examples, rate in (
            (2, 128, 256, 0.001), (2, 128, 512, 0.001), (2, 128, 512, 0.0003),
            (4, 64, 512, 0.0003),
        )
    },
}  # fmt: skip
# As many modules as a tenth, all of one kind: which kind of matrix does LoRA serve worst?
OF_ONE_KIND = {
    f"hybrid {kind} by hls of {TRIALS}": f".{kind}"
    for kind in ("gate_proj", "up_proj", "down_proj")
}
# As many of the largest matrices, from the last layer on: the baseline `last-layers`.
LAST_LAYERS = "hybrid largest of the last layers"


class TimeOverError(Exception):
    """The minutes of this call are over; what is finished is in the journal."""


@dataclass
class Clock:
    """The time of this call.

    Attributes:
        ends: When it is over, of `time.monotonic`.
        longest: Seconds of the longest piece of work of each kind so far.
    """

    ends: float
    longest: dict[str, float] = field(default_factory=dict)

    def timed(self, kind: str, work: Callable[[], Any]) -> Any:
        """Do a piece of work unless one as long as the longest of its kind would end too late.

        Raises:
            TimeOverError: There is no time for it.
        """
        began = time.monotonic()
        if began + self.longest.get(kind, 0.0) > self.ends:
            raise TimeOverError
        result = work()
        self.longest[kind] = max(self.longest.get(kind, 0.0), time.monotonic() - began)
        return result


@dataclass(kw_only=True)
class RealStudy:
    """One task.

    Attributes:
        task: Its name.
        base: The base model, on the device of the study.
        tokenizer: Its tokenizer.
        rows: Examples of each split.
        tensors: The same as tensors.
        steps: Optimizer steps of every training.
        batch: Examples of a step.
        folder: Where the tasks and their score reports are.
        journal: Finished trainings and choices.
        clock: The time of this call.
    """

    task: str
    base: LlamaForCausalLM
    tokenizer: Any
    rows: Mapping[str, Sequence[Row]]
    tensors: Mapping[str, Examples]
    steps: int
    batch: int
    folder: Path
    journal: Journal
    clock: Clock
    # What was built for the arm in hand.
    built: dict[Any, Any] = field(default_factory=dict)

    def train(self, arm: Arm, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """Train what is not in the journal, several at a time; the entries of all trials."""
        # Scores may have changed since: an arm of other modules is another arm.
        known = self.journal.arms
        missing = [
            trial for trial in trials
            if known.get(key_of(arm, trial), {}).get("full") != choice_of(arm)
        ]  # fmt: skip
        together = TOGETHER[self.base.device.type]
        for place in range(0, len(missing), together):
            some = missing[place : place + together]
            self.clock.timed("training", lambda some=some: self._train(arm, some))
        return [self.journal.arms[key_of(arm, trial)] for trial in trials]

    def _train(self, arm: Arm, trials: Sequence[Trial]) -> None:
        if arm.name not in self.built:
            self.built.clear()
            gc.collect()
            if self.base.device.type == "cuda":
                torch.cuda.empty_cache()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.built[arm.name] = arm.wrap(deepcopy(self.base))
        wrapped = self.built[arm.name]
        starts = [seeded_linears(wrapped, trial.seed) for trial in trials]
        if len(trials) not in self.built:
            self.built[len(trials)] = Stack(
                self.base, starts[0], self.tensors["train"],
                trainings=len(trials), steps=self.steps, batch=self.batch,
            )  # fmt: skip
        stack: Stack = self.built[len(trials)]
        seconds = stack.run(trials, starts)
        tuning = stack.measure(self.tensors["tuning"])
        test = stack.measure(self.tensors["test"])
        for place, trial in enumerate(trials):
            found = {
                "arm": arm.name, "kind": arm.kind, "seed": trial.seed,
                "full_rate": trial.full_rate, "lora_rate": trial.lora_rate,
                "parameters": stack.trained_params, "full": choice_of(arm),
                "tuning_loss": round(tuning[place].loss, 6),
                "test_loss": round(test[place].loss, 6),
                "accuracy": round(test[place].accuracy, 6), "test_losses": test[place].digest,
                "seconds": round(seconds / len(trials), 2), "device": device_name(self.base.device),
            }  # fmt: skip
            self.journal.add(key_of(arm, trial), found)
            print(
                f"{self.task:20} {arm.name:34} {stack.trained_params:11,} parameters, rates "
                f"{trial.full_rate:.3g} {trial.lora_rate:.3g}, seed {trial.seed}: tuning "
                f"{found['tuning_loss']:.4f}, test {found['test_loss']:.4f}, exact "
                f"{100 * found['accuracy']:.1f} %, {found['seconds']:.1f} s",
                flush=True,
            )

    def tuned(self, arm: Arm, rates: Sequence[int], other: float = 0.0) -> Trial:
        """The best rates of an arm on the tuning split.

        Args:
            arm: The arm.
            rates: Half decades to begin with: of the adapters of LoRA, else of full modules.
            other: Rate of the adapters of an arm that has both, while that of its full modules is
                chosen; then their own is, from those around it.

        Returns:
            The best training of the tuning seed.
        """
        start = Trial(seed=TUNING_SEED, full_rate=0.0, lora_rate=other)
        best = self._best(arm, start, "lora_rate" if arm.kind == "lora" else "full_rate", rates)
        return self._best(arm, best, "lora_rate", around(other)) if arm.kind == "hybrid" else best

    def _best(self, arm: Arm, start: Trial, name: str, rates: Sequence[int]) -> Trial:
        """The best value of one rate; the grid grows where the best is its end."""
        losses: dict[int, float] = {}

        def trial(place: int) -> Trial:
            return replace(start, **{name: float(f"{10 ** (place / 2):.3g}")})

        wanted = list(rates)
        while wanted:
            for place, entry in zip(
                wanted, self.train(arm, [trial(place) for place in wanted]), strict=True
            ):
                loss = entry["tuning_loss"]
                losses[place] = float("inf") if math.isnan(loss) else loss
            best = min(losses, key=lambda place: losses[place])
            beside = [place for place in (best - 1, best + 1) if place not in losses]
            wanted = beside if len(losses) < len(rates) + MOST_EXTENSIONS else []
        return trial(best)

    def run(
        self, arm: Arm, rates: Sequence[int], *, other: float = 0.0, seeds: Sequence[int]
    ) -> Trial:
        """Tune an arm and train it with the seeds that are reported."""
        best = self.tuned(arm, rates, other)
        self.train(arm, [replace(best, seed=seed) for seed in seeds])
        return best

    def report(self, source: str, rows: str = "first") -> ScoreReport:
        """Scores of the base model, computed once.

        Args:
            source: Of `WAYS`, `full fine-tuning`, or `weights` without any data.
            rows: Which examples: the `first` ones or the `second` as many.

        Returns:
            The report.
        """
        name = WEIGHTS if source == WEIGHTS else f"{self.task}-{source}-{rows}"
        path = self.folder / "scores" / f"{name.replace(',', '').replace(' ', '-')}.parquet"
        if path.exists():
            return read_report(path)
        began = time.monotonic()
        result = self.clock.timed(
            source, self._finished if source == FINISHED else lambda: self._ranked(source, rows)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two calls may score at once.
        written = path.with_suffix(f".{os.getpid()}")
        write_report(result.report, written)
        written.rename(path)
        seconds = time.monotonic() - began
        print(f"{self.task:20} scores by {source}, {rows} examples: {seconds:.0f} s", flush=True)
        return result.report

    def _ranked(self, source: str, rows: str) -> hlscore.RankResult:
        if source == WEIGHTS:
            return hlscore.rank(
                deepcopy(self.base), self.tokenizer, data="none", rank=RANK, score="spectral"
            )
        options = dict(WAYS[source])
        examples = options.pop("examples", SAMPLES)
        start = {"first": 0, "second": examples}[rows]
        return ranked(
            self.base, self.tokenizer, self.rows["train"][start : start + examples],
            ranks=RANKS, **options,
        )  # fmt: skip

    def _finished(self) -> hlscore.RankResult:
        """Scores of a full fine-tuning at its best rate, with the seed that no table reports."""
        arm = Planner(report=self.report(WEIGHTS), rank=RANK).full()
        rate = min(
            (line for line in lines_of(self.journal.path) if line.get("arm") == arm.name),
            key=lambda line: line.get("tuning_loss", math.inf),
        )["full_rate"]
        self._train(arm, [Trial(seed=TUNING_SEED, full_rate=rate, lora_rate=0.0)])
        tuned = deepcopy(self.base)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            for name in arm.full:
                tuned.get_submodule(name).weight.copy_(self.built[1].values(0, name))
            tuned.save_pretrained(folder)
            return hlscore.rank_updates(self.base.name_or_path, folder, rank=RANK, ranks=RANKS)

    def chosen(self, label: str, modules: Sequence[str], **more: Any) -> None:
        """Write down what a score chose."""
        if f"choice {label}" not in self.journal.arms:
            self.journal.add(f"choice {label}", {"modules": sorted(modules), **more})


def choice_of(arm: Arm) -> list[str]:
    """The modules that an arm trains in full; none are named where it is all of them."""
    return [] if arm.kind == "full" else sorted(arm.full)


def key_of(arm: Arm, trial: Trial) -> str:
    """Name of a training in the journal."""
    return f"{arm.name}, rates {trial.full_rate:.3g} {trial.lora_rate:.3g}, seed {trial.seed}"


def device_name(device: torch.device) -> str:
    """What a training ran on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def ranked(model: Any, tokenizer: Any, rows: Sequence[Row], **options: Any) -> hlscore.RankResult:
    """Rank a copy of the base model by all of some examples, as the study does."""
    settings = {"rank": RANK, "samples": 0, "batch_size": BATCH, "checkpointing": False}
    return hlscore.rank(deepcopy(model), tokenizer, data=rows, **{**settings, **options})


def encoded(rows: Sequence[Row], tokenizer: Any, model: Any) -> list[ProbeExample]:
    """Examples as hlscore tokenizes and masks them, in an order that only they decide."""
    examples = example_set(rows, "the task", DataSettings())
    groups = CaptureSettings().groups
    return encode(examples, tokenizer, model, max_length=None, groups=groups, seed=0).sequences


def seeded_linears(wrapped: Any, seed: int) -> dict[str, Linear]:
    """The linear layers of a wrapped model, with adapters drawn from a seed where any are drawn."""
    config = wrapped.peft_config["default"]
    if config.init_lora_weights is True:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in wrapped.modules():
                if isinstance(module, LoraLayer):
                    module.reset_lora_parameters("default", True)
    return {
        name: replace(item, a=None if item.a is None else item.a.clone())
        for name, item in linears_of(wrapped).items()
    }


def run_study(study: RealStudy) -> None:
    """All arms, the ones that decide first."""
    planner = Planner(report=study.report(WEIGHTS), rank=RANK)
    best_full = study.run(planner.full(), FULL_RATES, seeds=SEEDS)
    best_lora = study.run(planner.lora(RANK), LORA_RATES, seeds=SEEDS)
    full_rates, lora_rates = around(best_full.full_rate), around(best_lora.lora_rate)

    def run(arm: Arm, seeds: Sequence[int] = SEEDS[:1]) -> None:
        if arm.kind == "hybrid":
            study.run(arm, full_rates, other=best_lora.lora_rate, seeds=seeds)
        else:
            study.run(arm, lora_rates, seeds=seeds)

    planners = {}
    matched: list[Arm] = []
    for source in (TRIALS, GRADIENTS):
        planners[source] = replace(planner, report=study.report(source))
        plan = planners[source].scored("hls")
        study.chosen(f"hls of {source}", full_modules(plan))
        run(hybrid(f"hybrid hls of {source}", plan), SEEDS)
        equal = planner.matched(plan)
        # One rank serves hybrids of nearly the same size.
        if all(abs(equal.rank - other.rank) > 0.1 * other.rank for other in matched):
            matched.append(equal)
            run(equal, SEEDS)
        if source == TRIALS:
            one = planners[source].scored("hls", gated_pairs="one")
            study.chosen(f"hls of {source}{ONE_OF_PAIR}", full_modules(one))
            run(hybrid(GATE_OR_UP, one), SEEDS)
    count = len(full_modules(planners[GRADIENTS].scored("hls")))
    for draw in range(2):
        run(largest(planner, f"hybrid random of the largest {draw}", draw, count), SEEDS)
    plan = planners[GRADIENTS].scored("hls_share")
    study.chosen("hls_share of gradients", full_modules(plan))
    run(hybrid("hybrid hls_share of gradients", plan))
    run(hybrid("hybrid spectral", planner.scored("spectral")))
    for source, power in ((TRIALS, 1.0), (TRIALS, 0.25), (GRADIENTS, 0.25)):
        arm = ranks_arm(planners[source], "hls", RANK, power, RANKS)
        run(replace(arm, name=arm.name.replace("hls", f"hls of {source}")))
    for draw in range(2):
        run(random_arm(planners[GRADIENTS], draw))
    for source in planners:
        second = replace(planner, report=study.report(source, "second"))
        found = full_modules(second.scored("hls"))
        before = study.journal.arms[f"choice hls of {source}"]["modules"]
        study.chosen(f"hls of {source}, other examples", found, common=len({*found} & {*before}))
    for rank in (RANK, matched[0].rank):
        for method in BASELINES:
            run(peer(planner, method, rank))


def peer(planner: Planner, method: str, rank: int) -> Arm:
    """A method of PEFT on every candidate."""
    # The whole decomposition of every weight takes longer than the training.
    more = {"init_lora_weights": "pissa_niter_16"} if method == "pissa" else {}
    return replace(planner, rank=rank).peer(method, **more)


def arm_named(study: RealStudy, name: str) -> Arm:
    """An arm by its name; a hybrid with the modules of the journal, where it holds them.

    `NAME, budget B, rank R, alpha A` is the hybrid NAME with another budget of modules, or with
    other adapters; each of the three may be left out.

    Raises:
        ValueError: No arm has that name.
    """
    planner = Planner(report=study.report(WEIGHTS), rank=RANK)
    method, _, rank = name.partition(" r=")
    if name == "full":
        return planner.full()
    if method == "lora" and rank:
        return planner.lora(int(rank))
    if method in BASELINES and rank:
        return peer(planner, method, int(rank))
    whole, other = name, dict(OTHER.findall(name))
    name, budget = OTHER.sub("", name), other.get("budget", "0.1")

    def plan_by(way: str, pairs: GatedPairs = "both") -> Plan:
        planned_by = replace(planner, report=study.report(way))
        return planned_by.scored("hls", budget=budget, gated_pairs=pairs)

    scored: dict[str, tuple[str, GatedPairs]] = {
        SCORED_AGAIN: (TRIALS, "both"), BY_FINISHED: (FINISHED, "both"),
        **{f"hybrid hls of {way}": (way, "both") for way in WAYS},
        **{f"hybrid hls of {way}{ONE_OF_PAIR}": (way, "one") for way in WAYS},
    }  # fmt: skip
    lines = [] if "budget" in other else lines_of(study.journal.path)
    modules: Sequence[str] = next((line["full"] for line in lines if line.get("arm") == name), ())
    way, spread, _ = name.removeprefix("hybrid hls of ").partition(ONE_A_LAYER)
    if modules:
        pass
    elif name in scored:
        modules = full_modules(plan_by(*scored[name]))
    elif spread and way in WAYS:
        rows = sorted(study.report(way).candidates, key=lambda row: -(row.hls or 0.0))
        best = {row.layer: row.module for row in reversed(rows)}
        taken = [row.module for row in rows if row.module == best[row.layer]]
        modules = taken[: len(full_modules(plan_by(way)))]
    elif name == LAST_LAYERS:
        settings = PlanSettings(rank=RANK, gated_pairs="both", baseline="last-layers")
        modules = full_modules(replace(planner, report=study.report(TRIALS)).plan(settings))
    elif name in OF_ONE_KIND:
        rows = sorted(study.report(TRIALS).candidates, key=lambda row: -(row.hls or 0.0))
        same = [row.module for row in rows if row.module.endswith(OF_ONE_KIND[name])]
        modules = same[: len(full_modules(plan_by(TRIALS)))]
    if not modules:
        raise ValueError(f"No arm of the study, and none of the journal's hybrids, is {name!r}.")
    adapters = {option: int(other[option]) for option in ("rank", "alpha") if option in other}
    return planner.chosen(whole, modules, **adapters)


def around(rate: float) -> tuple[int, int, int]:
    """Half decades around a rate."""
    middle = round(2 * torch.tensor(rate).log10().item())
    return middle - 1, middle, middle + 1


def find(study: RealStudy) -> None:
    """Full fine-tuning and LoRA at two rates each: does LoRA lag?"""
    planner = Planner(report=study.report(WEIGHTS), rank=RANK)
    best = {}
    for arm, rates in ((planner.full(), "full"), (planner.lora(RANK), "lora")):
        trials = [
            Trial(
                seed=TUNING_SEED,
                full_rate=rate if arm.kind == "full" else 0.0,
                lora_rate=rate if arm.kind == "lora" else 0.0,
            )
            for rate in (float(f"{10 ** (place / 2):.3g}") for place in FIND_RATES[rates])
        ]
        best[rates] = min(study.train(arm, trials), key=lambda entry: entry["tuning_loss"])
    full, lora = best["full"], best["lora"]
    print(
        f"FIND {study.task:26} full {full['test_loss']:.4f} ({100 * full['accuracy']:.1f} %)  "
        f"lora {lora['test_loss']:.4f} ({100 * lora['accuracy']:.1f} %)  gap "
        f"{lora['test_loss'] - full['test_loss']:+.4f} "
        f"({100 * (full['accuracy'] - lora['accuracy']):+.1f} points)",
        flush=True,
    )


def picked(journals: Path, count: int) -> list[str]:
    """The tasks on which LoRA lags most, in exact answers, of those that `--find` tried."""
    lags = {}
    for path in sorted(journals.glob("*.jsonl")):
        best = {}
        for kind in FIND_RATES:
            name = "full" if kind == "full" else f"lora r={RANK}"
            tried = [line for line in lines_of(path) if line.get("arm") == name]
            tried = [line for line in tried if line["seed"] == TUNING_SEED]
            if tried:
                best[kind] = min(tried, key=lambda line: line["tuning_loss"])["accuracy"]
        if len(best) == len(FIND_RATES):
            lags[path.stem] = best["full"] - best["lora"]
    return sorted(lags, key=lambda task: -lags[task])[:count]


def opened(
    task: str, base: LlamaForCausalLM, tokenizer: Any, *, folder: Path, journals: Path,
    steps: int, clock: Clock, batch: int = BATCH,
) -> RealStudy:  # fmt: skip
    """The study of a task, with what is finished of it."""
    rows = read(task, folder)
    tokens = {split: encoded(some, tokenizer, base) for split, some in rows.items()}
    every = [item for split in tokens.values() for item in split]
    # Multiples of 8 suit the kernels.
    length = -(-max(len(item.input_ids) for item in every) // 8) * 8
    answers = max(item.counted_tokens for item in every)
    settings = {"task": task, "steps": steps, "batch": batch, "rank": RANK,
                "device": base.device.type}  # fmt: skip
    return RealStudy(
        task=task,
        base=base,
        tokenizer=tokenizer,
        rows=rows,
        tensors={
            split: tensors_of(items, length, answers, base.device)
            for split, items in tokens.items()
        },
        steps=steps,
        batch=batch,
        folder=folder,
        journal=Journal(journals / f"{task}.jsonl", settings),
        clock=clock,
    )


def loaded(folder: Path, device: str) -> tuple[LlamaForCausalLM, Any]:
    """The base model in float32, frozen, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    return model.requires_grad_(requires_grad=False).eval(), AutoTokenizer.from_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", action="append", help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--find", action="store_true", help="look for tasks on which LoRA lags")
    parser.add_argument("--pick", type=int, help="only print so many tasks on which LoRA lags most")
    parser.add_argument(
        "--arm", nargs=4, action="append", metavar=("ARM", "FULL", "LORA", "SEED"),
        help="only train this arm at these rates and with this seed; may be repeated",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=9.0, help="time of this call")
    parser.add_argument("--steps", type=int, help="250 on a GPU, 40 on a CPU")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--model", type=Path, default=MODELS / "smollm2")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of tasks and scores")
    parser.add_argument("--journals", type=Path, default=JOURNALS, help="of finished trainings")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if options.pick:
        print(*picked(options.journals, options.pick))
        return
    clock = Clock(ends=time.monotonic() + 60 * options.minutes)
    steps = options.steps or STEPS[torch.device(options.device).type]
    base, tokenizer = loaded(options.model, options.device)
    try:
        for task in options.task or FAMILIES:
            study = opened(
                task, base, tokenizer, folder=options.folder, journals=options.journals,
                steps=steps, clock=clock, batch=options.batch,
            )  # fmt: skip
            for name, full_rate, lora_rate, seed in options.arm or ():
                rates = {"full_rate": float(full_rate), "lora_rate": float(lora_rate)}
                study.train(arm_named(study, name), [Trial(seed=int(seed), **rates)])
            if options.arm:
                continue
            (find if options.find else run_study)(study)
            print(f"{task} is finished.", flush=True)
    except TimeOverError:
        print("Time is over; the same command goes on from here.", flush=True)


if __name__ == "__main__":
    main()
