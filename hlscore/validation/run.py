"""Short paired trainings of a plan and its baselines: arms, rates, trainings, comparison."""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hlscore._version import __version__
from hlscore.artifacts.plan import Plan
from hlscore.errors import DataError
from hlscore.inputs.examples import read_examples
from hlscore.inputs.formats import ExampleSet
from hlscore.inputs.model import LoadedModel, load_model
from hlscore.probes.encode import encode
from hlscore.probes.units import ProbeExample, ProbeSet
from hlscore.records import LOSS_ON, ProbeSummary
from hlscore.settings import ObjectiveSettings, ValidateSettings
from hlscore.steps import Progress
from hlscore.training.apply import check_model
from hlscore.validation.arms import FULL, LORA, PLAN, Arm, make_arms
from hlscore.validation.gaps import compare_arms
from hlscore.validation.journal import Journal
from hlscore.validation.training import POINTS, Outcome, Setup, Training, counted_tokens, train
from hlscore.validation.verdict import verdict

SCHEMA_VERSION = 1
TIMED_STEPS = 4

# Rates are tried at powers of this factor of the suggested ones.
RATE_FACTOR = 3.0
# Tries of one rate beyond the first three. The suggested rates suit large models; a small
# one can want some hundred times as much.
MOST_EXTENSIONS = 5

# Powers of `RATE_FACTOR` for modules in full and for adapters.
Rates = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """All trainings of a plan and its baselines, ready to start.

    Attributes:
        settings: How they run.
        setup: What they have in common.
        arms: What is compared.
        made_with: All that decides the outcome.
        objective: The loss that the plan was made for.
        notes: Remarks on the data.
    """

    settings: ValidateSettings
    setup: Setup
    arms: tuple[Arm, ...]
    made_with: Mapping[str, object]
    objective: str
    notes: tuple[str, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the trainings that are reported."""
        return tuple(range(self.settings.seed, self.settings.seed + self.settings.seeds))

    @property
    def tuning_seed(self) -> int:
        """Seed of the trainings that choose learning rates, none of those that are reported."""
        return self.settings.seed + self.settings.seeds

    @property
    def fewest_trainings(self) -> int:
        """Trainings when every search for rates ends where it begins."""
        return sum(1 + 2 * arm.rates.count(True) + self.settings.seeds for arm in self.arms)

    @property
    def most_trainings(self) -> int:
        """Trainings when every search goes on as long as it may."""
        rates = sum(arm.rates.count(True) for arm in self.arms)
        return self.fewest_trainings + rates * MOST_EXTENSIONS


def prepare(settings: ValidateSettings, plan: Plan) -> Trial:
    """Load model and data, and make the arms."""
    examples = read_examples(settings.data, seed=settings.seed)
    loaded = load_model(
        replace(settings.model, architecture=plan.model.architecture, ignore_adapter=True)
    )
    with warnings.catch_warnings(record=True) as other_weights:
        warnings.simplefilter("always")
        check_model(loaded.model, plan)
    probes, also = _encoded(settings, examples, loaded), None
    if settings.also is not None:
        other = replace(settings.data, data=settings.also, config=None)
        also = _encoded(settings, read_examples(other, seed=settings.seed), loaded)
    training, tuning, test = split_examples(
        tuple(probes.sequences), held_out=settings.held_out, seed=settings.seed
    )
    seeds = tuple(range(settings.seed, settings.seed + settings.seeds + 1))
    return Trial(
        settings=settings,
        setup=Setup(
            model=loaded.model, tokenizer=loaded.tokenizer, pad_token_id=probes.pad_token_id,
            training=training, tuning=tuning, test=test,
            also=() if also is None else tuple(also.sequences),
            steps=settings.steps, batch_size=settings.batch_size,
        ),
        arms=make_arms(plan, seeds, full=settings.full),
        made_with={
            "hlscore": __version__,
            "settings": asdict(settings),
            "data": probes.summary.hash,
            "also": None if also is None else also.summary.hash,
            "model": asdict(loaded.identity.fingerprint),
            "plan": plan.model_dump(mode="json"),
        },
        objective=plan.provenance.probes.objective,
        notes=(
            *loaded.identity.notes,
            *other_mask(probes.summary, plan),
            *probes.summary.notes,
            *(str(item.message) for item in other_weights),
        ),
    )  # fmt: skip


def _encoded(settings: ValidateSettings, examples: ExampleSet, loaded: LoadedModel) -> ProbeSet:
    return encode(
        examples, loaded.tokenizer, loaded.model,
        objective=ObjectiveSettings(assistant_only_loss=settings.assistant_only_loss),
        max_length=settings.data.max_length, groups=2, seed=settings.seed,
    )  # fmt: skip


def split_examples(
    examples: Sequence[ProbeExample], *, held_out: float, seed: int
) -> tuple[tuple[ProbeExample, ...], ...]:
    """Examples for training, tuning and testing, split by content in whatever order they come.

    Equal examples come into the same part. Half of the share `held_out` is for tuning.
    """
    order = sorted({item.digest(seed): item for item in examples}.items())
    unique = tuple(item for _, item in order)
    tested = round(held_out * len(unique) / 2)
    if tested < 2 or len(unique) - 2 * tested < 2:
        raise DataError(
            f"{len(unique)} different examples are too few to hold some out.",
            hint="Give at least ten, better some hundred.",
        )
    return unique[2 * tested :], unique[:tested], unique[tested : 2 * tested]


def other_mask(probes: ProbeSummary, plan: Plan) -> tuple[str, ...]:
    """Say that a plan was made for a loss on other tokens."""
    planned = plan.provenance.probes.loss_on
    if not planned or planned == probes.loss_on:
        return ()
    return (
        f"The plan was made for a loss on {LOSS_ON[planned]}, but this trial trains on "
        f"{LOSS_ON[probes.loss_on]}.",
    )


def seconds_per_training(trial: Trial) -> float:
    """Time a few steps of the plan and estimate what a whole training takes."""
    arm = next(arm for arm in trial.arms if arm.name == PLAN)
    plan = arm.plans[trial.tuning_seed]
    wanted = Training(arm=arm.name, seed=trial.tuning_seed)
    # The first step of a process is slow, so one training goes ahead.
    first = train(replace(trial.setup, steps=1), plan, wanted)
    began = time.perf_counter()
    timed = train(replace(trial.setup, steps=1 + TIMED_STEPS), plan, wanted)
    around = time.perf_counter() - began - timed.seconds - timed.measuring_seconds
    measuring = timed.measuring_seconds / len(timed.steps) * POINTS
    step = timed.seconds / (1 + TIMED_STEPS)
    if first.seconds < timed.seconds:
        step = (timed.seconds - first.seconds) / TIMED_STEPS
    return around + measuring + step * trial.settings.steps


def validate(trial: Trial, folder: Path, progress: Progress, *, resume: bool) -> dict[str, Any]:
    """Train every arm and compare them.

    Finished trainings are kept in the folder; `resume` goes on with those of an earlier start.

    Returns:
        The content of `validation.json`; null stands for what is not finite, as after a
        divergence.
    """
    settings, setup = trial.settings, trial.setup
    journal = Journal(folder, trial.made_with, resume=resume)
    progress.start("training", trial.most_trainings, "trainings")

    def run(arm: Arm, seed: int, rates: Rates) -> Outcome:
        full, lora = (RATE_FACTOR**power for power in rates)
        wanted = Training(arm=arm.name, seed=seed, full_factor=full, lora_factor=lora)
        outcome = journal.find(wanted)
        if outcome is None:
            outcome = train(setup, arm.plans[seed], wanted)
            journal.add(outcome)
        progress.advance(1)
        return outcome

    # Every other arm begins at the best rates of LoRA and of full fine-tuning.
    losses: dict[str, dict[Rates, float]] = {}
    for arm in sorted(trial.arms, key=lambda arm: arm.name not in (LORA, FULL)):
        full, lora = (best(losses[name]) if name in losses else (0, 0) for name in (FULL, LORA))
        losses[arm.name] = search(
            lambda rates, arm=arm: run(arm, trial.tuning_seed, rates).tuning_loss,  # type: ignore[misc]
            start=(full[0] if arm.rates[0] else 0, lora[1] if arm.rates[1] else 0),
            moves=arm.rates,
        )
    outcomes = {
        arm.name: [run(arm, seed, best(losses[arm.name])) for seed in trial.seeds]
        for arm in trial.arms
    }
    results = compare_arms(
        {name: [outcome.sums for outcome in found] for name, found in outcomes.items()},
        [item.counted_tokens for item in setup.test],
        seed=settings.seed,
    )
    untrained = sum(setup.sums(setup.model, setup.test)) / counted_tokens(setup.test)
    learned = any(result.loss.value < untrained for result in results.values())
    edges = [arm.name for arm in trial.arms if untried(losses[arm.name], arm.rates)]
    content = {
        "schema_version": SCHEMA_VERSION,
        "verdict": list(
            verdict(
                results,
                seeds=settings.seeds,
                steps=settings.steps,
                objective=trial.objective,
                unsettled=edges,
                learned=learned,
            )
        ),
        "notes": [*trial.notes, *_notes(trial, edges, untrained, learned=learned)],
        "untrained_loss": untrained,
        "arms": {
            arm.name: {
                **_arm(arm, losses[arm.name], outcomes[arm.name], settings.seed),
                **asdict(results[arm.name]),
            }
            for arm in trial.arms
        },
        "examples": {
            "training": len(setup.training),
            "tuning": len(setup.tuning),
            "test": len(setup.test),
        },
        "also": None if settings.also is None else _forgetting(settings.also, setup, outcomes),
        "made_with": {key: value for key, value in trial.made_with.items() if key != "plan"},
        "machine": {
            "device": str(setup.model.device),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft", "trl")},
        },
        "training_seconds": round(
            sum(outcome.seconds for found in outcomes.values() for outcome in found), 1
        ),
    }
    return {key: _without_nan(value) for key, value in content.items()}


def search(
    loss_at: Callable[[Rates], float], *, start: Rates, moves: tuple[bool, bool]
) -> dict[Rates, float]:
    """The tuning loss at the best rates that were found, and at those tried on the way.

    From the best rates so far one of the two is multiplied or divided by `RATE_FACTOR`, until no
    such step is better, or too many were tried.

    Args:
        loss_at: Trains at some rates and gives the tuning loss.
        moves: Which of the two rates there are to choose.

    Returns:
        The loss at all rates that were tried; infinite where it diverged.
    """
    found: dict[Rates, float] = {}
    most = 1 + moves.count(True) * (2 + MOST_EXTENSIONS)
    left = [start]
    while left and len(found) < most:
        loss = loss_at(left[0])
        found[left[0]] = loss if math.isfinite(loss) else math.inf
        left = untried(found, moves)
    return found


def best(losses: Mapping[Rates, float]) -> Rates:
    """The rates of the lowest loss; the lowest rates of equals."""
    return min(sorted(losses), key=lambda rates: losses[rates])


def untried(losses: Mapping[Rates, float], moves: tuple[bool, bool]) -> list[Rates]:
    """Rates next to the best ones that were not tried: while there are any, better may follow."""
    full, lora = best(losses)
    steps = [(1, 0), (-1, 0)] * moves[0] + [(0, 1), (0, -1)] * moves[1]
    near = [(full + up, lora + right) for up, right in steps]
    return [rates for rates in near if rates not in losses]


def _arm(
    arm: Arm, losses: Mapping[Rates, float], outcomes: Sequence[Outcome], seed: int
) -> dict[str, Any]:
    curves = [outcome.curve for outcome in outcomes]
    return {
        "trained_params": arm.trained_params,
        "memory_bytes": arm.memory_bytes,
        "lora_rank": arm.plans[seed].lora.rank,
        "rate_factors": [
            {
                "full_factor": RATE_FACTOR**full if arm.rates[0] else None,
                "lora_factor": RATE_FACTOR**lora if arm.rates[1] else None,
                "tuning_loss": loss,
            }
            for (full, lora), loss in sorted(losses.items())
        ],
        "seconds_per_training": sum(each.seconds for each in outcomes) / len(outcomes),
        "curve": {
            "steps": list(outcomes[0].steps),
            "mean": [sum(point) / len(point) for point in zip(*curves, strict=True)],
            "seeds": [list(curve) for curve in curves],
        },
    }


def _forgetting(
    source: str, setup: Setup, outcomes: Mapping[str, Sequence[Outcome]]
) -> dict[str, Any]:
    """Loss on other data before and after the trainings, nats per counted token."""
    counted = counted_tokens(setup.also)
    untrained = sum(setup.sums(setup.model, setup.also)) / counted
    losses = {
        name: [sum(outcome.also_sums) / counted for outcome in found]
        for name, found in outcomes.items()
    }
    return {
        "source": source,
        "examples": len(setup.also),
        "untrained_loss": untrained,
        "arms": {
            name: {
                "loss": sum(seeds) / len(seeds),
                "forgotten": sum(seeds) / len(seeds) - untrained,
                "seeds": seeds,
            }
            for name, seeds in losses.items()
        },
    }


def _notes(trial: Trial, edges: Sequence[str], untrained: float, *, learned: bool) -> list[str]:
    settings, notes = trial.settings, []
    if edges:
        notes.append(
            f"The best learning rate of {', '.join(edges)} is the last one that was tried: a "
            "better one may lie beyond."
        )
    if not learned:
        notes.append(
            f"No arm does better than the untrained model ({untrained:.4f} nats per token): this "
            "compares harm, not learning. Give more --steps, or data that the model does not know."
        )
    seen = settings.steps * settings.batch_size / len(trial.setup.training)
    if seen > 5:
        notes.append(f"Every example is seen {seen:.0f} times: this also measures memorisation.")
    if not settings.full:
        notes.append("Full fine-tuning was left out, so the gap is not known.")
    notes.append(
        f"Trainings of {settings.steps} steps: longer ones can end otherwise, as LoRA catches up "
        "where it is only slower."
    )
    return notes


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
