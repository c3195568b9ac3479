"""What is known of plans and runs besides their modules, by name, to be put side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hlscore.artifacts.plan import Plan
from hlscore.planning.make_plan import model_of, provenance_of
from hlscore.records import ScoreReport

Value = str | int | float | None
Facts = dict[str, Value]

# Settings that stand among the other facts, by another name or as what came of them.
_SHOWN = {
    "seed", "model.model", "model.revision", "data.data", "data.samples", "objective.objective",
    "objective.loss_type", "objective.rollouts",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that is known of the sides of a comparison."""

    name: str
    values: tuple[Value, ...]  # one per side; `None` where it is not known

    @property
    def same(self) -> bool:
        """Whether all sides agree."""
        return all(value == self.values[0] for value in self.values)


def side_by_side(sides: Sequence[Facts]) -> tuple[Fact, ...]:
    """The facts of several sides by name, in the order in which names come."""
    names = dict.fromkeys(name for side in sides for name in side)
    return tuple(Fact(name=name, values=tuple(side.get(name) for side in sides)) for name in names)


def facts_of(content: Plan | ScoreReport) -> Facts:
    """What a plan decides, or by what a report is ordered, and the run that the scores are from."""
    if isinstance(content, Plan):
        model, run, totals, lora = content.model, content.provenance, content.totals, content.lora
        facts: Facts = {
            "budget": content.budget.asked,
            "method": content.method,
            "score": content.score.name,
            "LoRA rank": lora.rank,
            "LoRA ranks": _text(lora.ranks),
            "LoRA alpha": lora.alpha,
            "modules": totals.candidate_modules,
            "in full": totals.full_modules,
            "with LoRA": totals.lora_modules,
            "frozen": totals.frozen_modules,
            "locked": sum(item.locked for item in content.modules),
            "parameters in full": totals.full_params,
            "trained parameters": totals.trained_params,
            "training memory": content.memory.total_bytes,
            "chosen again": content.stability.mean_reselection,
            "borderline": content.stability.borderline_modules,
        }
    else:
        model, run = model_of(content), provenance_of(content)
        facts = {"score": content.run.score, "LoRA rank": content.run.rank}
    probes = run.probes
    facts |= {
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
        **run.versions,
    }
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
