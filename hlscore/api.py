"""The Python API: rank the modules of a model that the caller already holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.artifacts.files import PLAN_FILE, ROLLOUTS_FILE, SCORES_FILE, check_folder, write_files
from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import write_plan
from hlscore.artifacts.plan_making import make_plan
from hlscore.artifacts.report import to_pandas, write_report
from hlscore.errors import DataError, UsageError
from hlscore.flow import (
    Progress,
    Silent,
    sample_rollouts,
    score_held_weights,
    score_model,
    score_updates,
)
from hlscore.inputs.examples import draw_rows, read_probes, wanted_formats
from hlscore.inputs.formats import ExampleSet, example_set
from hlscore.inputs.model import identify
from hlscore.planning.allocation import Allocation
from hlscore.records import ModuleRow, ScoreReport
from hlscore.rollouts.files import write_rollouts
from hlscore.rollouts.records import RolloutSet
from hlscore.rollouts.reward_calls import name_of
from hlscore.rollouts.reward_process import Reward
from hlscore.rollouts.verifiers import VERIFIERS
from hlscore.settings import (
    DEFAULT_RANK,
    VALUE_POWER,
    Accumulator,
    CandidateSettings,
    CaptureSettings,
    DataSettings,
    Estimator,
    MemorySettings,
    ModelSettings,
    Movement,
    Objective,
    ObjectiveSettings,
    PlanSettings,
    RankSettings,
    SvdMethod,
    TrialOptimizer,
    samples_for,
    score_for,
)

if TYPE_CHECKING:
    import pandas as pd

Data = str | Path | Iterable[Mapping[str, Any]] | None
Rollouts = Data | RolloutSet
IN_MEMORY = "examples in memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """What a run found.

    Attributes:
        report: Content of `scores.parquet`.
        plan: Content of `plan.json`.
        allocation: The decisions behind the plan, with totals and stability.
        rollouts: Completions that the model sampled, if it did.
    """

    report: ScoreReport
    plan: Plan
    allocation: Allocation
    rollouts: RolloutSet | None = None

    @property
    def rows(self) -> tuple[ModuleRow, ...]:
        """Rows of the report, the best first."""
        return self.report.rows

    @property
    def full_modules(self) -> tuple[str, ...]:
        """Names of the modules to train in full, the best first."""
        return tuple(item.row.module for item in self.allocation.decisions if item.mode == "full")

    def to_pandas(self) -> pd.DataFrame:
        """The report as a pandas frame."""
        return to_pandas(self.report)

    def save(self, folder: str | Path, *, force: bool = False) -> dict[str, Path]:
        """Write `scores.parquet` and `plan.json`, and `rollouts.jsonl` where some were sampled.

        Args:
            folder: Made when missing.
            force: Replace results that are already there.

        Returns:
            The path of each file.

        Raises:
            UsageError: The folder already holds results and `force` is off.
            ArtifactError: The folder cannot be written to.
        """
        target, rollouts = Path(folder), self.rollouts
        writers: dict[str, Callable[[Path], None]] = {
            SCORES_FILE: lambda path: write_report(self.report, path),
            PLAN_FILE: lambda path: write_plan(self.plan, path),
        }
        if rollouts is not None:
            writers[ROLLOUTS_FILE] = lambda path: write_rollouts(rollouts, path)
        check_folder(target, tuple(writers), force=force)
        return write_files(target, writers)


def rank(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: Data = None,
    objective: Objective | ObjectiveSettings = "sft",
    reward: Reward | Sequence[Reward] = (),
    rollouts: Rollouts = None,
    budget: str | float = 0.1,
    score: str | None = None,
    weight_scores: bool = False,
    rank: int = DEFAULT_RANK,
    alpha: int | None = None,
    ranks: Iterable[int] = (),
    min_rank: int = 0,
    value_power: float = VALUE_POWER,
    locks: Iterable[str] = (),
    memory: MemorySettings | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    embeddings: bool = False,
    head: bool = False,
    split: str = "train",
    samples: int | None = None,
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
    batch_size: int = 8,
    checkpointing: bool = True,
    estimator: Estimator = "auto",
    sketch_size: int | None = None,
    passes: int = 1,
    accumulate_on: Accumulator = "device",
    movement: Movement = "auto",
    trials: int = 4,
    trial_steps: int = 8,
    trial_rate: float | None = None,
    trial_optimizer: TrialOptimizer = "factored",
    svd: SvdMethod = "auto",
    groups: int = 8,
    bootstrap: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> RankResult:
    """Rank the modules of a model and plan which to train in full.

    The model comes back untouched: no hook, `.grad`, changed `requires_grad`, dtype or training
    flag stays behind, and its weights are the same bit for bit, also after an exception.

    Args:
        model: A causal language model in memory, on any device.
        tokenizer: Its tokenizer.
        data: Hub id, path or rows; `None` means the built-in probes, `"none"` the weights alone.
        objective: Loss of the training to come: `sft`, `dpo` or `grpo`, or
            `hlscore.ObjectiveSettings(objective="grpo", max_new_tokens=...)` with more.
        reward: What judges completions that the model samples itself, for grpo: a name as for
            `--reward`, a function as TRL calls it, or several.
        rollouts: Completions with rewards, for grpo: hub id, local path, rows, or those of an
            earlier result.
        budget: `0.1` for 10 % of the candidate modules, `"0.1p"` for 10 % of their parameters,
            `"500M"` for that many, `"24GiB"` for training memory.
        score: Name of the score that decides; `None` means `hls`, without probes `snr`.
        weight_scores: Decompose the weights beside the probes, for `snr`, `spectral`, `kappa`.
        rank: LoRA rank that full fine-tuning is compared against.
        alpha: LoRA alpha of the plan; `None` means twice the rank.
        ranks: LoRA ranks to choose from for each module; empty means `rank` for all.
        min_rank: With `ranks`: least LoRA rank of every module; 0 may freeze modules.
        value_power: With ranks: power of the gradient energy that a rank captures, above 0 to 1;
            the lower, the more evenly ranks are spread.
        locks: Pinned modules, such as `"*.down_proj=full"`.
        memory: What training memory depends on; by default AdamW in float32, a 16-bit base.
        include: Globs over full module names; empty means every candidate.
        exclude: Globs over full module names to leave out.
        embeddings: Rank the input embedding too.
        head: Rank the output head too.
        split: Split to read from `data`.
        samples: Examples, pairs or prompts to draw; 0 means all, `None` what `--samples` does.
        max_length: Tokens kept of each example; `None` means 1024 or the context if smaller.
        columns: Maps `text`, `messages`, `prompt`, `completion`, ... to columns of the data.
        batch_size: Examples per pass; changes speed, not scores.
        checkpointing: Recompute activations in the backward pass where the model supports it.
        estimator: `exact` gradients, `sketch`, or `auto`: exact while that fits the memory.
        sketch_size: Columns of a sketch; `None` means four times the rank, at least 64.
        passes: Passes over the probes, an odd number: more of them sharpen sketches.
        accumulate_on: `device` or `host`: where exact sums are kept.
        movement: `gradient`, `trial` (weight updates of short trainings), or `auto`.
        trials: Trial trainings, an even number; each has its own part of the probes.
        trial_steps: Optimizer steps of each trial.
        trial_rate: Learning rate of the trials; `None` finds one.
        trial_optimizer: `factored` (Adafactor without momentum), `sign` or `rms`.
        svd: `full` or `randomized` decompositions of gradients; `auto` is full up to a short side
            of 512.
        groups: Probe groups of each half, used to estimate standard errors.
        bootstrap: Resamples of the groups; 0 turns standard errors off.
        seed: Seed of every draw.
        progress: Told about the long steps; silent by default.

    Returns:
        Report, plan and decisions.

    Raises:
        HlscoreError: Something cannot be used.
    """
    source = str(data) if isinstance(data, str | Path) else None
    functions = _named(_several(reward))
    probed = _objective(objective, tuple(functions), rollouts)
    read = DataSettings(
        data=source, split=split, samples=samples_for(samples, probed), max_length=max_length,
        columns=dict(columns or {}),
    )  # fmt: skip
    capture = CaptureSettings(
        batch_size=batch_size, checkpointing=checkpointing, estimator=estimator,
        sketch_size=sketch_size, passes=passes, accumulate_on=accumulate_on, movement=movement,
        trials=trials, trial_steps=trial_steps, trial_rate=trial_rate,
        trial_optimizer=trial_optimizer, svd=svd, groups=groups, bootstrap=bootstrap,
    )  # fmt: skip
    plan = PlanSettings(
        budget=str(budget), score=score_for(score, source), rank=rank, alpha=alpha,
        ranks=tuple(sorted(set(ranks))), min_rank=min_rank, value_power=value_power,
        locks=_texts(locks),
        memory=memory or MemorySettings(),
    )  # fmt: skip
    settings = RankSettings(
        model=ModelSettings(model=model.config.name_or_path or type(model).__name__),
        data=read,
        objective=probed,
        candidates=CandidateSettings(
            include=_texts(include), exclude=_texts(exclude), embeddings=embeddings, head=head
        ),
        capture=capture,
        plan=plan,
        weight_scores=weight_scores,
        seed=seed,
    )
    given: Rollouts = data if rollouts is None else rollouts
    return _run(model, tokenizer, given, settings, functions, progress or Silent())


def rank_updates(
    base: str | Path,
    updates: str | Path | Sequence[str | Path],
    *,
    budget: str | float = 0.1,
    score: str | None = None,
    weight_scores: bool = False,
    rank: int = DEFAULT_RANK,
    alpha: int | None = None,
    ranks: Iterable[int] = (),
    locks: Iterable[str] = (),
    memory: MemorySettings | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    embeddings: bool = False,
    head: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> RankResult:
    """Rank the modules by what finished trainings changed, and plan the next one.

    Weights are read from safetensors files, tensor by tensor; no model is loaded.

    Args:
        base: Hub id or directory of the model that the trainings started from.
        updates: Fine-tuned models or PEFT adapters, hub ids or directories. Several are
            cross-fitted, a single one gives plain tails.
        budget: As for `rank`.
        score: As for `rank`; scores of single gradient entries are refused.
        weight_scores: Decompose the weights of the base too, for `snr`, `spectral`, `kappa`.
        rank: LoRA rank that full fine-tuning is compared against.
        alpha: LoRA alpha of the plan; `None` means twice the rank.
        ranks: LoRA ranks to choose from for each module; empty means `rank` for all.
        locks: Pinned modules, such as `"*.down_proj=full"`.
        memory: What training memory depends on; by default AdamW in float32, a 16-bit base.
        include: Globs over full module names; empty means every candidate.
        exclude: Globs over full module names to leave out.
        embeddings: Rank the input embedding too.
        head: Rank the output head too.
        seed: Seed of every draw.
        progress: Told about the decompositions; silent by default.

    Returns:
        Report, plan and decisions.

    Raises:
        HlscoreError: Something cannot be used.
    """
    several = [updates] if isinstance(updates, str | Path) else list(updates)
    settings = RankSettings(
        model=ModelSettings(model=str(base)),
        candidates=CandidateSettings(
            include=_texts(include), exclude=_texts(exclude), embeddings=embeddings, head=head
        ),
        capture=CaptureSettings(movement="update"),
        plan=PlanSettings(
            budget=str(budget), score=score_for(score, None), rank=rank, alpha=alpha,
            ranks=tuple(sorted(set(ranks))), locks=_texts(locks),
            memory=memory or MemorySettings(),
        ),
        updates=tuple(str(each) for each in several),
        weight_scores=weight_scores,
        seed=seed,
    )  # fmt: skip
    found = score_updates(settings, progress or Silent())
    return RankResult(
        report=found.report,
        plan=make_plan(found.report, found.allocation),
        allocation=found.allocation,
    )


def _run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Rollouts,
    settings: RankSettings,
    functions: Mapping[str, Reward],
    progress: Progress,
) -> RankResult:
    identity = identify(model, settings.model.model, getattr(model.config, "_commit_hash", None))
    if settings.data.without_probes:
        report, allocation = score_held_weights(model, identity, settings, progress)
        plan = make_plan(report, allocation)
        return RankResult(report=report, plan=plan, allocation=allocation)
    examples, rollouts = _examples(data, settings), None
    if settings.objective.samples_rollouts and isinstance(examples, ExampleSet):
        rollouts = sample_rollouts(
            model, tokenizer, identity, examples, settings, progress, functions=functions
        )
    found = score_model(model, tokenizer, identity, rollouts or examples, settings, progress)
    assert found is not None  # noqa: S101 - a process alone is the main one
    report, allocation = found
    plan = make_plan(report, allocation)
    return RankResult(report=report, plan=plan, allocation=allocation, rollouts=rollouts)


def _several(reward: Reward | Sequence[Reward]) -> tuple[Reward, ...]:
    if isinstance(reward, str) or callable(reward) or not isinstance(reward, Iterable):
        several: tuple[Reward, ...] = (reward,)
    else:
        several = tuple(reward)
    for item in several:
        if not (isinstance(item, str) or callable(item)):
            raise UsageError(
                f"A reward is of type {type(item).__name__}.", hint="Give a name or a function."
            )
    return several


def _named(rewards: tuple[Reward, ...]) -> dict[str, Reward]:
    """Rewards by a name that no other has, in their order."""
    taken = {item for item in rewards if isinstance(item, str)} | set(VERIFIERS)
    found: dict[str, Reward] = {}
    for item in rewards:
        name, number = item if isinstance(item, str) else name_of(item), 1
        while not isinstance(item, str) and name in taken | set(found):
            number += 1
            name = f"{name_of(item)}#{number}"
        found[name] = item
    return found


def _objective(
    given: Objective | ObjectiveSettings, rewards: tuple[str, ...], rollouts: Rollouts
) -> ObjectiveSettings:
    """Settings with the names of what the caller handed over."""
    known = {} if isinstance(given, ObjectiveSettings) else {"objective": given}
    changes: dict[str, Any] = dict(known)
    if rewards:
        changes["rewards"] = rewards
    if rollouts is not None:
        named = isinstance(rollouts, str | Path)
        changes["rollouts"] = str(rollouts) if named else IN_MEMORY
    if isinstance(given, ObjectiveSettings):
        return replace(given, **changes)
    return ObjectiveSettings(**changes)


def _texts(given: Iterable[str]) -> tuple[str, ...]:
    """Several texts, or one that somebody forgot to put into a list."""
    return (given,) if isinstance(given, str) else tuple(given)


def _examples(data: Rollouts, settings: RankSettings) -> ExampleSet | RolloutSet:
    if isinstance(data, RolloutSet):
        return data
    if data is None or isinstance(data, str | Path):
        return read_probes(settings)
    rows = list(data)
    if isinstance(data, Mapping) or not all(isinstance(row, Mapping) for row in rows):
        raise DataError(
            "data is neither a name, a path, nor a list of mappings.",
            hint='Give rows such as {"prompt": ..., "completion": ...}; of a DatasetDict, a split.',
        )
    wanted = wanted_formats(settings.objective)
    # Groups of rollouts are drawn later, when all completions of each are known.
    samples = 0 if wanted == ("rollouts",) else settings.data.samples
    drawn = draw_rows(rows, samples, settings.seed)
    return example_set(drawn, IN_MEMORY, settings.data, wanted)
