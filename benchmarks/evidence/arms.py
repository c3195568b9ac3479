"""The arms of the study: what is trained, and how a model is wrapped for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import peft
import torch
from torch import nn
from transformers import LlamaForCausalLM

from hlscore.artifacts.plan import Plan
from hlscore.planning.baselines import nearest_rank
from hlscore.planning.make_plan import make_plan
from hlscore.records import ScoreReport
from hlscore.settings.plan import GatedPairs, PlanSettings
from hlscore.training.apply import apply
from hlscore.validation.arms import drawn_modules

Kind = Literal["full", "lora", "hybrid"]
BASELINES = ("dora", "rslora", "pissa")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to train."""

    name: str  # what it is called in the tables
    kind: Kind  # decides which learning rates are tried
    # Wraps a fresh base model; adapters start at values that torch's generator draws.
    wrap: Callable[[LlamaForCausalLM], nn.Module]
    full: tuple[str, ...] = ()  # modules trained in full
    rank: int = 0  # LoRA rank of the others
    # LoRA rank of each module whose rank is another one; 0 where it is frozen.
    ranks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Makes arms from a score report."""

    report: ScoreReport  # scores of the base model on the task
    rank: int  # LoRA rank of the study

    def scored(
        self,
        score: str,
        *,
        budget: str = "0.1",
        rank: int | None = None,
        gated_pairs: GatedPairs = "both",
    ) -> Plan:
        """The plan that a score gives; unless told otherwise by the score alone."""
        return self.plan(
            PlanSettings(
                score=score, budget=budget, rank=rank or self.rank, gated_pairs=gated_pairs
            )
        )

    def full(self) -> Arm:
        """Every candidate in full."""
        settings = PlanSettings(baseline="all-full", score="random", rank=self.rank)
        return planned("full", "full", self.plan(settings))

    def lora(self, rank: int) -> Arm:
        """LoRA of one rank on every candidate."""
        plan = self.plan(PlanSettings(baseline="all-lora", score="random", rank=rank))
        return planned(f"lora r={rank}", "lora", plan)

    def matched(self, plan: Plan) -> Arm:
        """LoRA of the one rank whose parameters come nearest to what a plan trains."""
        return self.lora(nearest_rank(plan.totals.trained_params, self.report.candidates))

    def drawn(self, name: str, *, seed: int, params: int) -> Arm:
        """Modules drawn at random in full, spread over kinds and sizes, of so many parameters."""
        return self.chosen(name, drawn_modules(self.report.candidates, seed=seed, params=params))

    def chosen(
        self,
        name: str,
        modules: Iterable[str],
        *,
        rank: int | None = None,
        alpha: int | None = None,
    ) -> Arm:
        """The given modules in full, LoRA on the others; of alpha twice the rank by default."""
        locks = tuple(f"{module}=full" for module in modules)
        settings = PlanSettings(
            baseline="all-lora", score="random", rank=rank or self.rank, alpha=alpha, locks=locks
        )
        return planned(name, "hybrid", self.plan(settings))

    def peer(self, method: str, **more: Any) -> Arm:
        """A method of PEFT, at the rank of the study, on every candidate; more options of PEFT."""
        options = {"dora": {"use_dora": True}, "rslora": {"use_rslora": True},
                   "pissa": {"init_lora_weights": "pissa"},
                   "olora": {"init_lora_weights": "olora"}}[method]  # fmt: skip
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=2 * self.rank,
            target_modules=[row.module for row in self.report.candidates], **{**options, **more},
        )  # fmt: skip
        return Arm(
            name=f"{method} r={self.rank}",
            kind="lora",
            rank=self.rank,
            wrap=lambda model: peft.get_peft_model(model, replace(config)),
        )

    def plan(self, settings: PlanSettings) -> Plan:
        """The plan of any settings."""
        return make_plan(self.report, settings)


def hybrid(name: str, plan: Plan) -> Arm:
    """An arm that trains a plan with modules in full."""
    return planned(name, "hybrid", plan)


def full_modules(plan: Plan) -> tuple[str, ...]:
    """The modules that a plan trains in full, by name."""
    return tuple(sorted(item.module for item in plan.modules if item.mode == "full"))


def seeded(arm: Arm, base: Callable[[], LlamaForCausalLM], seed: int) -> nn.Module:
    """A base model wrapped for an arm, with adapters drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return arm.wrap(base())


def start_values(
    arm: Arm, base: Callable[[], LlamaForCausalLM], seed: int
) -> dict[str, torch.Tensor]:
    """First values of all that an arm trains, with adapters drawn from a seed."""
    parameters = seeded(arm, base, seed).named_parameters()
    return {name: value.detach() for name, value in parameters if value.requires_grad}


def planned(name: str, kind: Kind, plan: Plan) -> Arm:
    """An arm that trains a plan."""
    return Arm(
        name=name,
        kind=kind,
        wrap=lambda model: apply(model, plan, allow_other_weights=True),
        full=full_modules(plan),
        rank=plan.lora.rank,
        ranks={
            item.module: item.rank or 0
            for item in plan.modules
            if item.mode != "full" and item.rank != plan.lora.rank
        },
    )
