"""What is known of a plan or a run besides its modules, by name, to be held side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from hlscore.artifacts.plan import Plan, PlanModel, PlanProvenance
from hlscore.errors import ArtifactError
from hlscore.planning.make_plan import model_of, provenance_of
from hlscore.records import ScoreReport

Value = str | int | float | None
Facts = Mapping[str, Value]

# Settings that stand among the other facts, by another name or as what came of them.
_SHOWN = {
    "seed", "model.model", "model.revision", "data.data", "data.samples", "objective.objective",
    "objective.loss_type", "objective.rollouts",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that is known of both sides, or of several runs.

    Attributes:
        name: What it is.
        values: One per side; `None` where it is not known.
    """

    name: str
    values: tuple[Value, ...]

    @property
    def same(self) -> bool:
        """Whether all sides agree."""
        return all(value == self.values[0] for value in self.values)


def side_by_side(sides: list[Facts]) -> tuple[Fact, ...]:
    """Put facts of several sides together.

    Returns:
        One per name, in the order in which names come.
    """
    names = dict.fromkeys(name for side in sides for name in side)
    return tuple(Fact(name=name, values=tuple(side.get(name) for side in sides)) for name in names)


def plan_facts(plan: Plan) -> dict[str, Value]:
    """Budget, totals and stability of a plan.

    Returns:
        Values by name; `None` for what a plan of version 1 does not know.
    """
    totals = plan.totals
    ranks = ", ".join(str(rank) for rank in plan.lora.ranks)
    return {
        "budget": plan.budget.asked,
        "method": plan.method,
        "score": plan.score.name,
        "LoRA rank": plan.lora.rank,
        "LoRA ranks": ranks or None,
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


def report_facts(path: Path, report: ScoreReport) -> dict[str, Value]:
    """Score, model, probes and versions of a run."""
    with fit_for_plans(path):
        facts = run_facts(model_of(report), provenance_of(report))
    own: dict[str, Value] = {"score": report.run.score, "LoRA rank": report.run.rank}
    return own | facts


@contextmanager
def fit_for_plans(path: Path) -> Iterator[None]:
    """Refuse a report with values that no plan can hold.

    Yields:
        Nothing; what is done inside turns the report into parts of a plan.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"'{path}' is damaged: a plan cannot hold its '{place}': {first['msg']}.",
            hint="Write it again with `hlscore rank`.",
        ) from error


def run_facts(model: PlanModel, run: PlanProvenance) -> dict[str, Value]:
    """Model, probes and versions of the run that the scores come from.

    Returns:
        Values by name; differing settings of the run come under their own names.
    """
    probes = run.probes
    facts: dict[str, Value] = {
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
