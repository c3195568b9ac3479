"""Trainings of one base model on one task: learning rates are searched, results are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from arms import Arm, start_values
from bases import load_base
from journal import Journal, as_entry
from stacked import Tensors, Trained, Trial, train
from torch import nn
from transformers import LlamaForCausalLM
from world import Batch, Row, Task, encode

SEEDS = (0, 1, 2, 3, 4)
TUNING_SEEDS = (200, 201)
STEPS = {"chain": 120, "facts": 120, "next": 120}
# Where the search begins.
FULL_RATES, LORA_RATES = (2e-3, 4e-3), (1e-2, 2e-2)
MOST_RATES = 14
# Trainings that run as one.
TOGETHER = 6

Rates = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Study:
    """One base model on one task."""

    base: str  # name of the base model
    task: Task  # what is learned
    device: str  # where it runs
    journal: Journal  # what is finished
    tuning: Batch  # examples that choose learning rates
    test: Batch  # examples that are reported
    seeds: Sequence[int] = SEEDS  # seeds of the reported trainings
    # Parts of a training after which the test loss is measured; 1 measures the end only.
    curve: int = 8
    models: dict[str, LlamaForCausalLM] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Optimizer steps of every training."""
        return STEPS[self.task.name]

    def model(self) -> LlamaForCausalLM:
        """A fresh base model."""
        if not self.models:
            self.models[self.base] = load_base(self.base, device=self.device)
        config = self.models[self.base].config
        fresh = LlamaForCausalLM._from_config(config, attn_implementation="eager")
        fresh.load_state_dict(self.models[self.base].state_dict())
        fresh.tie_weights()
        return fresh.to(self.device)

    def rows(self, number: int, count: int) -> list[Row]:
        """Examples of the task that no training sees."""
        return self.task.draw(np.random.default_rng((7, number)), count)

    def batch(self, seed: int, step: int) -> Batch:
        """The batch of a step; every arm of a seed sees the same ones."""
        return encode(self.task.draw(np.random.default_rng((seed, step)), self.task.batch_size))

    def train(
        self, arm: Arm, trials: Sequence[Trial], steps: int | None = None
    ) -> tuple[list[Trained], list[Tensors]]:
        """Train an arm, a few trainings at a time."""
        model, found, values = arm.wrap(self.model()), [], []
        for place in range(0, len(trials), TOGETHER):
            some = trials[place : place + TOGETHER]
            done, stacked = train(
                model, some, self.batch, steps=steps or self.steps,
                measured=tuple(self.steps * part // self.curve for part in range(1, self.curve)),
                tuning=self.tuning, test=self.test,
                start=lambda seed: start_values(arm, self.model, seed),
            )  # fmt: skip
            found += done
            values += [{n: v[k].detach() for n, v in stacked.items()} for k in range(len(some))]
        return found, values

    def run(self, arm: Arm, rates: Rates | None = None, **search: Any) -> None:
        """Train an arm with every seed, unless that is done, and keep what comes of it.

        Rates that are not given are tuned on seeds of their own; where that search begins and ends
        is said as for `tune`.
        """
        if arm.name in self.journal.arms:
            return
        for entry in tuple(self.journal.arms.values()):
            if same(entry, arm) and rates in (None, rates_of(entry)):
                self.journal.add(arm.name, {**entry, "equals": entry["name"]})
                return
        began = time.monotonic()
        tuned = {} if rates else tune(arm.kind, lambda some: self.train(arm, some)[0], **search)
        found, _ = self.train(arm, trials_at(rates or best_of(tuned), self.seeds))
        keep(self.journal, arm, found, began, tuned, trainable(arm.wrap(self.model())))


def same(entry: Mapping[str, Any], arm: Arm) -> bool:
    """Whether a finished hybrid trains what an arm trains."""
    return arm.kind == "hybrid" and (
        [entry.get(name) for name in ("kind", "full", "rank")]
        == ["hybrid", list(arm.full), arm.rank]
        and entry.get("ranks", {}) == arm.ranks
    )


def trainable(model: nn.Module) -> int:
    """Number of parameters that a model trains."""
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


def keep(
    journal: Journal,
    arm: Arm,
    found: list[Trained],
    began: float,
    tuned: Mapping[Rates, float],
    parameters: int,
) -> None:
    """Write an arm into the journal, and tell that it is finished."""
    entry = journal.add(
        arm.name,
        {
            "kind": arm.kind,
            "full": list(arm.full),
            "rank": arm.rank,
            **({"ranks": dict(arm.ranks)} if arm.ranks else {}),
            "parameters": parameters,
            "tuning": [[*pair, loss] for pair, loss in tuned.items()],
            "trials": as_entry(found),
            "seconds": round(time.monotonic() - began, 1),
        },
    )
    losses = [np.mean(trial["losses"]) for trial in entry["trials"]]
    first = entry["trials"][0]["trial"]
    print(
        f"{entry['name']:28} {entry['parameters']:7,} parameters  loss {np.mean(losses):.4f} "
        f"± {np.std(losses, ddof=1) / len(losses) ** 0.5:.4f}  rates {first['full_rate']:g} "
        f"{first['lora_rate']:g}  {entry['seconds']:.0f} s",
        flush=True,
    )


def best_of(tuned: Mapping[Rates, float]) -> Rates:
    """The rates with the lowest loss."""
    return min(tuned, key=lambda pair: tuned[pair])


def rates_of(entry: Mapping[str, Any]) -> Rates:
    """The rates that a finished arm was trained with."""
    trial = entry["trials"][0]["trial"]
    return trial["full_rate"], trial["lora_rate"]


def trials_at(rates: Rates, seeds: Sequence[int] = SEEDS) -> list[Trial]:
    """The reported trainings at these rates of full modules and of adapters."""
    full, lora = rates
    return [Trial(seed=seed, full_rate=full, lora_rate=lora) for seed in seeds]


def tune(
    kind: str,
    run: Callable[[list[Trial]], list[Trained]],
    *,
    full_rates: Sequence[float] = FULL_RATES,
    lora_rates: Sequence[float] = LORA_RATES,
    most: int = MOST_RATES,
    seeds: Sequence[int] = TUNING_SEEDS,
) -> dict[Rates, float]:
    """Try the learning rates of a kind of arm, and those around the best until none is better.

    Args:
        full_rates: Rates of full modules to begin with.
        lora_rates: Rates of adapters to begin with.
        most: Pairs of rates after which the search ends.
        seeds: Seeds of its trainings.

    Returns:
        Mean loss over the tuning seeds of each pair of rates that was tried.
    """
    full = (0.0,) if kind == "lora" else full_rates
    lora = (0.0,) if kind == "full" else lora_rates
    wanted = [(a, b) for a in full for b in lora]
    done: dict[Rates, float] = {}
    while fresh := [pair for pair in wanted if pair not in done]:
        pairs = [(pair, seed) for pair in fresh for seed in seeds]
        found = run([Trial(seed=seed, full_rate=a, lora_rate=b) for (a, b), seed in pairs])
        for pair in fresh:
            losses = [f.tuning_loss for (p, _), f in zip(pairs, found, strict=True) if p == pair]
            done[pair] = float(np.mean(losses))
        if len(done) >= most:
            break
        wanted = list(around(best_of(done)))
    return done


def around(best: Rates) -> Iterable[Rates]:
    """The rates twice and half as high, one at a time."""
    full, lora = best
    for factor in (0.5, 2.0):
        if full:
            yield full * factor, lora
        if lora:
            yield full, lora * factor
