"""Short paired trainings of a plan and its baselines: arms, rates, trainings, comparison."""

from __future__ import annotations

import json
import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hlscore._version import __version__
from hlscore.artifacts.plan import Plan
from hlscore.errors import ArtifactError, DataError, UsageError
from hlscore.exporters.exporter import Export
from hlscore.inputs.examples import read_examples
from hlscore.inputs.formats import ExampleSet
from hlscore.inputs.model import load_model
from hlscore.probes.encode import encode
from hlscore.probes.units import ProbeExample, ProbeSet, counted_tokens
from hlscore.records import LOSS_ON, ProbeSummary
from hlscore.settings import ObjectiveSettings, ValidateSettings
from hlscore.steps import Progress
from hlscore.training.apply import check_model
from hlscore.unfinished import check_same_run, store_lines, stored_lines
from hlscore.validation.arms import FULL, LORA, MATCHED, PLAN, RSLORA, Arm, make_arms, rslora_alpha
from hlscore.validation.gaps import ArmResult, compare_arms, verdict
from hlscore.validation.training import (
    MOST_EXTENSIONS,
    POINTS,
    Outcome,
    Training,
    Validation,
    train,
)
from hlscore.wording import count

SCHEMA_VERSION = 1
# Finished trainings, one line each; not named as the progress of `rank` is, which may go to the
# same folder.
JOURNAL = ".hlscore-validation.jsonl"
_TIMED_STEPS = 4

# Rates are tried at powers of this factor of the suggested ones.
RATE_FACTOR = 3.0
# Powers of `RATE_FACTOR` for modules in full and for adapters.
Rates = tuple[int, int]


def prepare(settings: ValidateSettings, plan: Plan) -> Validation:
    """Load model and data, and make the arms."""
    examples = read_examples(settings.data, seed=settings.seed)
    loaded = load_model(
        replace(settings.model, architecture=plan.model.architecture, ignore_adapter=True)
    )
    with warnings.catch_warnings(record=True) as other_weights:
        warnings.simplefilter("always")
        check_model(loaded.model, plan)

    def encoded(data: ExampleSet) -> ProbeSet:
        return encode(
            data, loaded.tokenizer, loaded.model,
            objective=ObjectiveSettings(assistant_only_loss=settings.assistant_only_loss),
            max_length=settings.data.max_length, groups=2, seed=settings.seed, halves=False,
        )  # fmt: skip

    probes, also = encoded(examples), None
    if settings.also is not None:
        other = replace(settings.data, data=settings.also, config=None)
        also = encoded(read_examples(other, seed=settings.seed))
    training, tuning, test = split_examples(
        tuple(probes.sequences), held_out=settings.held_out, seed=settings.seed
    )
    seeds = tuple(range(settings.seed, settings.seed + settings.seeds + 1))
    return Validation(
        settings=settings,
        plan=plan,
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        pad_token_id=probes.pad_token_id,
        training=training,
        tuning=tuning,
        test=test,
        also=() if also is None else tuple(also.sequences),
        arms=make_arms(plan, seeds, full=settings.full),
        made_with={
            "hlscore": __version__,
            "settings": asdict(settings),
            "data": probes.summary.hash,
            "also": None if also is None else also.summary.hash,
            "model": asdict(loaded.identity.fingerprint),
            "plan": plan.model_dump(mode="json"),
        },
        notes=(
            *loaded.identity.notes,
            *other_mask(probes.summary, plan),
            *probes.summary.notes,
            *(str(item.message) for item in other_weights),
        ),
    )


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
            f"{count(len(unique), 'different example')} "
            f"{'is' if len(unique) == 1 else 'are'} too few to hold some out.",
            hint="Give at least ten, better some hundred.",
        )
    return unique[2 * tested :], unique[:tested], unique[tested : 2 * tested]


def other_mask(probes: ProbeSummary, plan: Plan) -> tuple[str, ...]:
    """Say that a plan was made for a loss on other tokens."""
    planned = plan.provenance.probes.loss_on
    if not planned or planned == probes.loss_on:
        return ()
    return (
        f"The plan was made for a loss on {LOSS_ON[planned]}, but this validation trains on "
        f"{LOSS_ON[probes.loss_on]}.",
    )


def seconds_per_training(validation: Validation) -> float:
    """Time a few steps of the plan and estimate what a whole training takes."""
    wanted = Training(arm=PLAN, seed=validation.tuning_seed)
    # The first step of a process is slow, so one training goes ahead.
    first = train(validation, wanted, steps=1)
    began = time.perf_counter()
    timed = train(validation, wanted, steps=1 + _TIMED_STEPS)
    around = time.perf_counter() - began - timed.seconds - timed.measuring_seconds
    measuring = timed.measuring_seconds / len(timed.steps) * POINTS
    step = timed.seconds / (1 + _TIMED_STEPS)
    if first.seconds < timed.seconds:
        step = (timed.seconds - first.seconds) / _TIMED_STEPS
    return around + measuring + step * validation.settings.steps


def validate(
    validation: Validation, folder: Path, progress: Progress, *, resume: bool
) -> dict[str, Any]:
    """The content of `validation.json`, after training every arm and comparing them.

    Finished trainings are kept in the folder; `resume` goes on with those of an earlier start.
    Null stands for what is not finite, as after a divergence.
    """
    settings, model = validation.settings, validation.model
    finished = _finished(folder, validation.made_with, resume=resume)
    progress.start("training", validation.trainings[1], "trainings")

    def run(arm: Arm, seed: int, rates: Rates) -> Outcome:
        full, lora = (RATE_FACTOR**power for power in rates)
        wanted = Training(arm=arm.name, seed=seed, full_factor=full, lora_factor=lora)
        if wanted not in finished:
            finished[wanted] = train(validation, wanted, steps=settings.steps)
            _keep(folder, asdict(finished[wanted]))
        progress.advance(1)
        return finished[wanted]

    # Every other arm begins at the best rates of LoRA and of full fine-tuning.
    losses: dict[str, dict[Rates, float]] = {}
    for arm in sorted(validation.arms, key=lambda arm: arm.name not in (LORA, FULL)):
        full, lora = (best(losses[name]) if name in losses else (0, 0) for name in (FULL, LORA))
        losses[arm.name] = search(
            lambda rates, arm=arm: run(arm, validation.tuning_seed, rates).tuning_loss,  # type: ignore[misc]
            start=(full[0] if arm.rates[0] else 0, lora[1] if arm.rates[1] else 0),
            moves=arm.rates,
        )
    outcomes = {
        arm.name: [run(arm, seed, best(losses[arm.name])) for seed in validation.seeds]
        for arm in validation.arms
    }
    results = compare_arms(
        {name: [outcome.sums for outcome in found] for name, found in outcomes.items()},
        [item.counted_tokens for item in validation.test],
        seed=settings.seed,
    )
    untrained = validation.loss(model, validation.test)
    notes = [*validation.notes, *scaling_note(results, validation.plan)]
    seen = settings.steps * settings.batch_size / len(validation.training)
    if seen > 5:
        notes.append(f"Every example is seen {seen:.0f} times: this also measures memorisation.")
    notes.append(
        f"Trainings of {settings.steps} steps: longer ones can end otherwise, as LoRA catches up "
        "where it is only slower."
    )
    also = None
    if settings.also is not None:
        counted = counted_tokens(validation.also)
        before = validation.loss(model, validation.also)
        forgetting = {}
        for name, found in outcomes.items():
            after = [sum(outcome.also_sums) / counted for outcome in found]
            mean = sum(after) / len(after)
            forgetting[name] = {"loss": mean, "forgotten": mean - before, "seeds": after}
        also = {
            "source": settings.also,
            "examples": len(validation.also),
            "untrained_loss": before,
            "arms": forgetting,
        }
    arms: dict[str, Any] = {}
    full_rate, lora_rate = Export(plan=validation.plan).rates("sft")
    for arm in validation.arms:
        found = outcomes[arm.name]
        curves = [outcome.curve for outcome in found]
        of_full, of_lora = best(losses[arm.name])
        arms[arm.name] = {
            "trained_params": arm.trained_params,
            "memory_bytes": arm.memory_bytes,
            "lora_rank": arm.plans[settings.seed].lora.rank,
            "lora_alpha": arm.plans[settings.seed].lora.alpha,
            "learning_rates": {  # those that did best
                "full": full_rate * RATE_FACTOR**of_full if arm.rates[0] else None,
                "lora": lora_rate * RATE_FACTOR**of_lora if arm.rates[1] else None,
            },
            "rate_factors": [  # those that were tried, as multiples of the plan's
                {
                    "full_factor": RATE_FACTOR**full if arm.rates[0] else None,
                    "lora_factor": RATE_FACTOR**lora if arm.rates[1] else None,
                    "tuning_loss": loss,
                }
                for (full, lora), loss in sorted(losses[arm.name].items())
            ],
            "seconds_per_training": sum(outcome.seconds for outcome in found) / len(found),
            "curve": {
                "steps": found[0].steps,
                "mean": [sum(point) / len(point) for point in zip(*curves, strict=True)],
                "seeds": curves,
            },
            **asdict(results[arm.name]),
        }
    content = {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict(
            results,
            seeds=settings.seeds,
            steps=settings.steps,
            objective=validation.plan.provenance.probes.objective,
            unsettled=[arm.name for arm in validation.arms if untried(losses[arm.name], arm.rates)],
            untrained=untrained,
        ),
        "notes": notes,
        "untrained_loss": untrained,
        "arms": arms,
        "examples": {
            "training": len(validation.training),
            "tuning": len(validation.tuning),
            "test": len(validation.test),
        },
        "also": also,
        "made_with": {key: value for key, value in validation.made_with.items() if key != "plan"},
        "machine": {
            "device": str(model.device),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft", "trl")},
        },
        "training_seconds": round(
            sum(outcome.seconds for found in outcomes.values() for outcome in found), 1
        ),
    }
    finite: dict[str, Any] = _without_nan(content)
    return finite


def scaling_note(found: Mapping[str, ArmResult], plan: Plan) -> tuple[str, ...]:
    """Say that a larger alpha may help the plan, where it helps LoRA of equal size."""
    alpha = rslora_alpha(plan.lora.rank)
    if RSLORA not in found or alpha <= plan.lora.alpha:
        return ()
    if not found[RSLORA].better_than[MATCHED].low > 0:
        return ()
    return (
        f"LoRA of equal size is better with the scaling of rsLoRA: a plan with --alpha {alpha} may "
        "be too. Make it and validate it.",
    )


def _finished(
    folder: Path, made_with: Mapping[str, object], *, resume: bool
) -> dict[Training, Outcome]:
    """The finished trainings of an earlier start to resume; else a new journal is begun."""
    path = folder / JOURNAL
    if not path.exists():
        _keep(folder, {"made_with": made_with})
        return {}
    if not resume:
        raise UsageError(
            f"'{folder}' holds an unfinished validation.",
            hint="Go on with --resume, start anew with --force, or choose another --out.",
        )
    found = {}
    try:
        first, *lines = stored_lines(path)
        check_same_run(folder, first["made_with"], json.loads(json.dumps(made_with)))
        for line in lines:
            values: dict[str, Any] = {
                key: tuple(item) if isinstance(item, list) else item for key, item in line.items()
            }
            training = Training(**line["training"])
            found[training] = Outcome(**values | {"training": training})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"'{path}' cannot be read.", hint="Start anew with --force.") from error
    return found


def _keep(folder: Path, line: Mapping[str, object]) -> None:
    """Add a line to the journal; it is on the disk when this returns."""
    path = folder / JOURNAL
    try:
        store_lines(path, [line])
    except OSError as error:
        raise ArtifactError(
            f"'{path}' cannot be written: {error.strerror}.", hint="Choose another --out."
        ) from error


def search(
    loss_at: Callable[[Rates], float], *, start: Rates, moves: tuple[bool, bool]
) -> dict[Rates, float]:
    """The tuning loss at all rates that were tried; infinite where it diverged.

    From the best rates so far one of the two that may move is multiplied or divided by
    `RATE_FACTOR`, until no such step is better, or too many were tried.
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


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
