"""What is known of plans and runs besides their modules, by name, to be put side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hlscore.artifacts.plan import Plan, PlanModel, PlanProvenance

Value = str | int | float | None
Facts = dict[str, Value]

# Settings that stand among the other facts, by another name or as what came of them.
_SHOWN = {
    "seed", "model.model", "model.revision", "data.data", "data.samples", "objective.objective",
    "objective.loss_type", "objective.rollouts",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that is known of the sides of a comparison.

    Attributes:
        values: One per side; `None` where it is not known.
    """

    name: str
    values: tuple[Value, ...]

    @property
    def same(self) -> bool:
        """Whether all sides agree."""
        return all(value == self.values[0] for value in self.values)


def side_by_side(sides: Sequence[Facts]) -> tuple[Fact, ...]:
    """The facts of several sides by name, in the order in which names come."""
    names = dict.fromkeys(name for side in sides for name in side)
    return tuple(Fact(name=name, values=tuple(side.get(name) for side in sides)) for name in names)


def plan_facts(plan: Plan) -> Facts:
    """Budget, totals and stability of a plan, and the run that its scores come from."""
    totals = plan.totals
    facts: Facts = {
        "budget": plan.budget.asked,
        "method": plan.method,
        "score": plan.score.name,
        "LoRA rank": plan.lora.rank,
        "LoRA ranks": _text(plan.lora.ranks),
        "LoRA alpha": plan.lora.alpha,
        "modules": totals.candidate_modules,
        "in full": totals.full_modules,
        "with LoRA": totals.lora_modules,
        "frozen": totals.frozen_modules,
        "locked": sum(item.locked for item in plan.modules),
        "parameters in full": totals.full_params,
        "trained parameters": totals.trained_params,
        "training memory": plan.memory.total_bytes,
        "chosen again": plan.stability.mean_reselection,
        "borderline": plan.stability.borderline_modules,
    }
    return facts | run_facts(plan.model, plan.provenance)


def run_facts(model: PlanModel, run: PlanProvenance) -> Facts:
    """Model, probes, versions and settings of the run that scores come from."""
    probes = run.probes
    facts: Facts = {
        "model": model.name,
        "revision": model.revision,
        "architecture": model.architecture,
        "weights": model.fingerprint.weights,
        "objective": f"{probes.objective} {probes.loss_type}".strip(),
        "probes": probes.source,
        "probe hash": probes.hash,
        "examples": probes.examples,
        "completions": probes.completions,
        "counted tokens": probes.counted_tokens,
        "mean loss": probes.mean_loss,
        "mean reward": probes.mean_reward,
        "seed": run.seed,
        "estimator": run.estimator,
        "device": run.device,
        "dtype": run.dtype,
        "learning rate of trials": run.trial_rate,
        "hlscore": run.hlscore_version,
    }
    facts |= run.versions
    settings = dict(_settings(run.settings))
    return facts | {name: value for name, value in settings.items() if name not in facts}


def _settings(settings: Mapping[str, object]) -> Iterator[tuple[str, Value]]:
    """Settings that decide the scores, with their group before their name."""
    for group, inner in settings.items():
        if group == "plan":
            continue
        items = inner.items() if isinstance(inner, dict) else ((None, inner),)
        for name, value in items:
            full = group if name is None else f"{group}.{name}"
            if full not in _SHOWN:
                yield full, value if isinstance(value, str | int | float) else _text(value)


def _text(value: object) -> str | None:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or None
    return None if value is None else str(value)
