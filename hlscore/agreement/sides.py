"""The files that `compare` and `diff` put beside each other, and what is known of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import read_artifact
from hlscore.errors import HlscoreError
from hlscore.planning.make_plan import model_of, plan_values, provenance_of
from hlscore.records import ScoreReport

Value = str | int | float | None
Facts = dict[str, tuple[Value, ...]]
"""What is known of the sides by name, one value per side; `None` where it is not known."""

# Settings that stand among the other facts, by another name or as what came of them.
_SHOWN = {
    "seed", "model.model", "model.revision", "data.data", "data.samples", "objective.objective",
    "objective.loss_type", "objective.rollouts",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the files that are compared."""

    path: Path
    label: str  # the parts of its path that set it apart; no two sides have the same
    content: Plan | ScoreReport

    @property
    def from_scores(self) -> bool:
        """Whether the file holds scores, not a plan."""
        return isinstance(self.content, ScoreReport)


def read_sides(paths: Sequence[Path]) -> tuple[Side, ...]:
    """Read plans and score reports; a path that comes twice is read once."""
    found = {path: read_artifact(path) for path in dict.fromkeys(paths)}
    parts = [path.absolute().parts for path in paths]
    least = min(map(len, parts))
    first = last = 0  # parts that all paths begin and end with
    while first < least - 1 and len({own[first] for own in parts}) == 1:
        first += 1
    while last < least - first - 1 and len({own[-1 - last] for own in parts}) == 1:
        last += 1
    labels = ["/".join(own[first : len(own) - last]) for own in parts]
    sides = []
    for place, (path, label) in enumerate(zip(paths, labels, strict=True)):
        again = f" ({labels[: place + 1].count(label)})" if labels.count(label) > 1 else ""
        sides.append(Side(path=path, label=label + again, content=found[path]))
    return tuple(sides)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Name the file in errors about its content, and refuse values that no plan can hold."""
    try:
        with plan_values():
            yield
    except HlscoreError as error:
        raise type(error)(f"'{path}': {error.message}", hint=error.hint) from error


def side_by_side(facts: Sequence[Mapping[str, Value]]) -> Facts:
    """What is known of each side, by name."""
    names = dict.fromkeys(name for side in facts for name in side)
    return {name: tuple(side.get(name) for side in facts) for name in names}


def facts_of(content: Plan | ScoreReport) -> dict[str, Value]:
    """What a plan decides, or by what a report is ordered, and the run that scores are from."""
    facts: dict[str, Value]
    if isinstance(content, Plan):
        model, run, totals, lora = content.model, content.provenance, content.totals, content.lora
        facts = {
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
        "steps of trials": run.trial_steps,
        "hlscore": run.hlscore_version,
        **run.versions,
    }
    # Settings that decide the scores, with their group before their name.
    for group, value in run.settings.items():
        if group == "plan":
            continue
        inner = value if isinstance(value, dict) else {"": value}
        for name, setting in inner.items():
            full = f"{group}.{name}".rstrip(".")
            if full not in _SHOWN:
                facts.setdefault(full, _text(setting))
    return facts


def _text(value: object) -> Value:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or None
    return value if isinstance(value, str | int | float | None) else str(value)
