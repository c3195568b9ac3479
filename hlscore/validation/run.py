"""The whole trial: arms, rates, trainings, comparison."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hlscore._version import __version__
from hlscore.artifacts.plan import Plan
from hlscore.inputs.examples import read_examples
from hlscore.inputs.model import LoadedModel, load_model
from hlscore.probes.encode import encode
from hlscore.probes.units import ProbeSet
from hlscore.records import LOSS_ON, ProbeSummary
from hlscore.settings import FACTORS, ObjectiveSettings, ValidateSettings
from hlscore.steps import Progress
from hlscore.training.apply import check_model
from hlscore.validation.arms import FULL, PLAN, Arm, make_arms
from hlscore.validation.examples import Examples, split_examples
from hlscore.validation.gaps import ArmResult, compare_arms
from hlscore.validation.journal import Journal
from hlscore.validation.rates import MOST_EXTENSIONS, at_edge, best, search
from hlscore.validation.training import POINTS, Ground, Outcome, Trial, example_sums, train
from hlscore.validation.verdict import verdict

TIMED_STEPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTrial:
    """How an arm was trained.

    Attributes:
        trained_params: Trained parameters, the mean over seeds.
        memory_bytes: Predicted training memory of its first plan.
        rank: LoRA rank.
        factors: Tuning loss of each factor of the suggested rates.
        edge: Whether the best factor is the last one that was tried.
        outcomes: The reported trainings, one per seed.
    """

    trained_params: float
    memory_bytes: int
    rank: int
    factors: Mapping[float, float]
    edge: bool
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What a trial found.

    Attributes:
        arms: How each arm was trained.
        results: How each arm did.
        verdict: What that means.
        notes: Remarks.
        examples: Sizes of the parts of the data.
        untrained: Test loss of the base model, nats per counted token.
        seconds: Wall time of all trainings, those of an earlier start too.
        also: Forgetting on other data; `None` where none was given.
    """

    arms: Mapping[str, ArmTrial]
    results: Mapping[str, ArmResult]
    verdict: tuple[str, ...]
    notes: tuple[str, ...]
    examples: Mapping[str, int]
    untrained: float
    seconds: float
    also: Forgetting | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgetting:
    """Loss on other data before and after the trainings.

    Attributes:
        source: The data, as given.
        examples: How many examples.
        untrained: Loss of the base model, nats per counted token.
        arms: Loss after each training of each arm, in the order of the seeds.
    """

    source: str
    examples: int
    untrained: float
    arms: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A trial that is ready to start.

    Attributes:
        settings: How it runs.
        ground: What all trainings start from.
        arms: What is compared.
        made_with: All that decides the outcome.
        objective: The loss that the plan was made for.
        notes: Remarks on the data.
    """

    settings: ValidateSettings
    ground: Ground
    arms: tuple[Arm, ...]
    made_with: Mapping[str, object]
    objective: str
    notes: tuple[str, ...]

    @property
    def fewest_trainings(self) -> int:
        """Trainings when no search for rates goes on beyond its first three."""
        return len(self.arms) * (len(FACTORS) + self.settings.seeds)

    @property
    def most_trainings(self) -> int:
        """Trainings when every search goes on as long as it may."""
        return self.fewest_trainings + len(self.arms) * MOST_EXTENSIONS


def prepare(settings: ValidateSettings, plan: Plan) -> Prepared:
    """Load model and data, and make the arms.

    Args:
        settings: How the trial runs.
        plan: The plan that is tried out.

    Returns:
        The trial.

    Raises:
        HlscoreError: Something cannot be used; the message says what.
    """
    examples = read_examples(settings.data, seed=settings.seed)
    loaded = load_model(
        replace(settings.model, architecture=plan.model.architecture, ignore_adapter=True)
    )
    with warnings.catch_warnings(record=True) as other_weights:
        warnings.simplefilter("always")
        check_model(loaded.model, plan)
    probes = encode(
        examples, loaded.tokenizer, loaded.model,
        objective=ObjectiveSettings(assistant_only_loss=settings.assistant_only_loss),
        max_length=settings.data.max_length, groups=2, seed=settings.seed,
    )  # fmt: skip
    sequences = [item for half in probes.halves for group in half for item in group]
    parts = split_examples(sequences, held_out=settings.held_out, seed=settings.seed)
    also = _other_examples(settings, loaded)
    seeds = (tuning_seed(settings), *reported_seeds(settings))
    arms = make_arms(plan, loaded.identity, seeds, full=settings.full)
    ground = Ground(
        model=loaded.model, tokenizer=loaded.tokenizer, examples=parts,
        steps=settings.steps, batch_size=settings.batch_size,
        also=() if also is None else tuple(also.sequences),
    )  # fmt: skip
    made_with = {
        "hlscore": __version__,
        "settings": asdict(settings),
        "data": probes.summary.hash,
        "also": None if also is None else also.summary.hash,
        "model": asdict(loaded.identity.fingerprint),
        "plan": plan.model_dump(mode="json"),
    }
    return Prepared(
        settings=settings, ground=ground, arms=arms, made_with=made_with,
        objective=plan.provenance.probes.objective,
        notes=(
            *loaded.identity.notes,
            *other_mask(probes.summary, plan),
            *probes.summary.notes,
            *(str(item.message) for item in other_weights),
        ),
    )  # fmt: skip


def _other_examples(settings: ValidateSettings, loaded: LoadedModel) -> ProbeSet | None:
    """Examples of what the model should still do after the training."""
    if settings.also is None:
        return None
    data = replace(settings.data, data=settings.also, config=None)
    return encode(
        read_examples(data, seed=settings.seed), loaded.tokenizer, loaded.model,
        objective=ObjectiveSettings(assistant_only_loss=settings.assistant_only_loss),
        max_length=data.max_length, groups=2, seed=settings.seed,
    )  # fmt: skip


def _forgetting(
    source: str | None, ground: Ground, arms: Mapping[str, ArmTrial]
) -> Forgetting | None:
    if source is None:
        return None
    counted = sum(item.counted_tokens for item in ground.also)
    return Forgetting(
        source=source,
        examples=len(ground.also),
        untrained=sum(example_sums(ground.model, ground.also, ground)) / counted,
        arms={
            name: tuple(sum(outcome.also_sums) / counted for outcome in arm.outcomes)
            for name, arm in arms.items()
        },
    )


def other_mask(probes: ProbeSummary, plan: Plan) -> tuple[str, ...]:
    """Say that a plan was made for a loss on other tokens."""
    planned = plan.provenance.probes.loss_on
    if not planned or planned == probes.loss_on:
        return ()
    return (
        f"The plan was made for a loss on {LOSS_ON[planned]}, but this trial trains on "
        f"{LOSS_ON[probes.loss_on]}.",
    )


def reported_seeds(settings: ValidateSettings) -> tuple[int, ...]:
    """Seeds of the trainings that are reported."""
    return tuple(range(settings.seed, settings.seed + settings.seeds))


def tuning_seed(settings: ValidateSettings) -> int:
    """Seed of the trainings that choose learning rates, none of those that are reported."""
    return settings.seed + settings.seeds


def seconds_per_training(trial: Prepared) -> float:
    """Time a few steps of the plan and estimate what a whole training takes."""
    seed = tuning_seed(trial.settings)
    arm = next(arm for arm in trial.arms if arm.name == PLAN)
    wanted = Trial(arm=arm.name, seed=seed, factor=1.0)
    # The first step of a process is slow, so one training goes ahead.
    first = train(replace(trial.ground, steps=1), arm.plans[seed], wanted)
    began = time.perf_counter()
    timed = train(replace(trial.ground, steps=1 + TIMED_STEPS), arm.plans[seed], wanted)
    around = time.perf_counter() - began - timed.seconds - timed.measuring_seconds
    measuring = timed.measuring_seconds / len(timed.steps) * POINTS
    step = timed.seconds / (1 + TIMED_STEPS)
    if first.seconds < timed.seconds:
        step = (timed.seconds - first.seconds) / TIMED_STEPS
    return around + measuring + step * trial.settings.steps


def validate(trial: Prepared, folder: Path, progress: Progress, *, resume: bool) -> Validation:
    """Train every arm and compare.

    Args:
        trial: The trial.
        folder: Where finished trainings are kept.
        progress: Told about the trainings.
        resume: Whether to go on with finished trainings.

    Returns:
        What it found.

    Raises:
        UsageError: The folder holds another trial.
        HlscoreError: A training cannot be run.
    """
    settings, ground = trial.settings, trial.ground
    journal = Journal(folder, trial.made_with, resume=resume)
    progress.start("training", trial.most_trainings, "trainings")

    def run(arm: Arm, seed: int, factor: float) -> Outcome:
        wanted = Trial(arm=arm.name, seed=seed, factor=factor)
        outcome = journal.find(wanted)
        if outcome is None:
            outcome = train(ground, arm.plans[seed], wanted)
            journal.add(outcome)
        progress.advance(1)
        return outcome

    arms = {arm.name: _train_arm(arm, settings, run) for arm in trial.arms}
    counts = [item.counted_tokens for item in ground.examples.test]
    sums = {name: [outcome.sums for outcome in arm.outcomes] for name, arm in arms.items()}
    results = compare_arms(sums, counts, seed=settings.seed)
    start = example_sums(ground.model, ground.examples.test, ground)
    untrained = sum(start) / sum(counts)
    return Validation(
        arms=arms,
        results=results,
        verdict=verdict(
            results,
            seeds=settings.seeds,
            steps=settings.steps,
            objective=trial.objective,
            unsettled=[name for name, arm in arms.items() if arm.edge],
            learned=any(result.loss.value < untrained for result in results.values()),
        ),
        notes=(*trial.notes, *_notes(trial, arms, results, untrained)),
        examples=_sizes(ground.examples),
        untrained=untrained,
        seconds=sum(outcome.seconds for arm in arms.values() for outcome in arm.outcomes),
        also=_forgetting(settings.also, ground, arms),
    )


def _train_arm(
    arm: Arm, settings: ValidateSettings, run: Callable[[Arm, int, float], Outcome]
) -> ArmTrial:
    tuning = tuning_seed(settings)
    factors = search(lambda factor: run(arm, tuning, factor).tuning_loss)
    outcomes = tuple(run(arm, seed, best(factors)) for seed in reported_seeds(settings))
    return ArmTrial(
        trained_params=arm.trained_params,
        memory_bytes=arm.memory_bytes,
        rank=arm.plans[settings.seed].lora.rank,
        factors=factors,
        edge=at_edge(factors),
        outcomes=outcomes,
    )


def _sizes(examples: Examples) -> dict[str, int]:
    return {
        "training": len(examples.training),
        "tuning": len(examples.tuning),
        "test": len(examples.test),
    }


def _notes(
    trial: Prepared,
    arms: Mapping[str, ArmTrial],
    results: Mapping[str, ArmResult],
    untrained: float,
) -> list[str]:
    settings, notes = trial.settings, []
    edges = [name for name, arm in arms.items() if arm.edge]
    if edges:
        notes.append(
            f"The best learning rate of {', '.join(edges)} is the last one that was tried: a "
            "better one may lie beyond."
        )
    if not any(result.loss.value < untrained for result in results.values()):
        notes.append(
            f"No arm does better than the untrained model ({untrained:.4f} nats per token): this "
            "compares harm, not learning. Give more --steps, or data that the model does not know."
        )
    shown = settings.steps * settings.batch_size / len(trial.ground.examples.training)
    if shown > 5:
        notes.append(f"Every example is seen {shown:.0f} times: this measures memory too.")
    if FULL not in arms:
        notes.append("Full fine-tuning was left out, so the gap is not known.")
    notes.append(
        f"Trainings of {settings.steps} steps: longer ones can end otherwise, for LoRA catches up "
        "where it is only slower."
    )
    return notes
