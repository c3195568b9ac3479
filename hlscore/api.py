"""The Python API: rank the modules of a model that the caller already holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.artifacts.files import PLAN_FILE, SCORES_FILE, check_folder, write_files
from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import write_plan
from hlscore.artifacts.plan_making import make_plan
from hlscore.artifacts.report import to_pandas, write_report
from hlscore.errors import DataError
from hlscore.flow import Progress, Silent, score_model
from hlscore.inputs.examples import draw_rows, read_examples
from hlscore.inputs.formats import ExampleSet, example_set
from hlscore.inputs.model import identify
from hlscore.planning.allocation import Allocation
from hlscore.records import ModuleRow, ScoreReport
from hlscore.settings import (
    DEFAULT_RANK,
    DEFAULT_SAMPLES,
    Accumulator,
    CandidateSettings,
    CaptureSettings,
    DataSettings,
    Estimator,
    MemorySettings,
    ModelSettings,
    PlanSettings,
    RankSettings,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """What a run found.

    Attributes:
        report: Content of `scores.parquet`.
        plan: Content of `plan.json`.
        allocation: The decisions behind the plan, with totals and stability.
    """

    report: ScoreReport
    plan: Plan
    allocation: Allocation

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
        """Write `scores.parquet` and `plan.json`.

        Args:
            folder: Made when missing.
            force: Replace results that are already there.

        Returns:
            The path of each file.

        Raises:
            UsageError: The folder already holds results and `force` is off.
            ArtifactError: The folder cannot be written to.
        """
        target = Path(folder)
        check_folder(target, (SCORES_FILE, PLAN_FILE), force=force)
        return write_files(
            target,
            {
                SCORES_FILE: lambda path: write_report(self.report, path),
                PLAN_FILE: lambda path: write_plan(self.plan, path),
            },
        )


def rank(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: str | Path | Iterable[Mapping[str, Any]] | None = None,
    budget: str | float = 0.1,
    score: str = "hls",
    rank: int = DEFAULT_RANK,
    alpha: int | None = None,
    ranks: Iterable[int] = (),
    locks: Iterable[str] = (),
    memory: MemorySettings | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    embeddings: bool = False,
    head: bool = False,
    split: str = "train",
    samples: int = DEFAULT_SAMPLES,
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
    batch_size: int = 8,
    checkpointing: bool = True,
    estimator: Estimator = "auto",
    sketch_size: int | None = None,
    passes: int = 1,
    accumulate_on: Accumulator = "device",
    seed: int = 0,
    progress: Progress | None = None,
) -> RankResult:
    """Rank the modules of a model and plan which to train in full.

    The model comes back untouched: no hook, `.grad`, changed `requires_grad`, dtype or training
    flag stays behind, also after an exception.

    Args:
        model: A causal language model in memory, on any device.
        tokenizer: Its tokenizer.
        data: Hub id, local path, or examples as mappings; `None` means the built-in probes.
        budget: `0.1` for 10 % of the candidate modules, `"0.1p"` for 10 % of their parameters,
            `"500M"` for that many, `"24GiB"` for training memory.
        score: Name of the score that decides.
        rank: LoRA rank that full fine-tuning is compared against.
        alpha: LoRA alpha of the plan; `None` means twice the rank.
        ranks: LoRA ranks to choose from for each module; empty means `rank` for all.
        locks: Pinned modules, such as `"*.down_proj=full"`.
        memory: What training memory depends on; by default AdamW in float32, a 16-bit base.
        include: Globs over full module names; empty means every candidate.
        exclude: Globs over full module names to leave out.
        embeddings: Rank the input embedding too.
        head: Rank the output head too.
        split: Split to read from `data`.
        samples: Number of examples to draw; 0 means all.
        max_length: Tokens kept of each example; `None` means 1024 or the context if smaller.
        columns: Maps `text`, `messages`, `prompt`, `completion` to columns of the data.
        batch_size: Examples per pass; changes speed, not scores.
        checkpointing: Recompute activations in the backward pass where the model supports it.
        estimator: `exact` gradients, `sketch`, or `auto`: exact while that fits the memory.
        sketch_size: Columns of a sketch; `None` means four times the rank, at least 64.
        passes: Passes over the probes, an odd number: more of them sharpen sketches.
        accumulate_on: `device` or `host`: where exact sums are kept.
        seed: Seed of every draw.
        progress: Told about the long steps; silent by default.

    Returns:
        Report, plan and decisions.

    Raises:
        HlscoreError: Something cannot be used.
    """
    source = str(data) if isinstance(data, str | Path) else None
    settings = RankSettings(
        model=ModelSettings(model=model.config.name_or_path or type(model).__name__),
        data=DataSettings(
            data=source,
            split=split,
            samples=samples,
            max_length=max_length,
            columns=dict(columns or {}),
        ),
        candidates=CandidateSettings(
            include=_texts(include),
            exclude=_texts(exclude),
            embeddings=embeddings,
            head=head,
        ),
        capture=CaptureSettings(
            batch_size=batch_size,
            checkpointing=checkpointing,
            estimator=estimator,
            sketch_size=sketch_size,
            passes=passes,
            accumulate_on=accumulate_on,
        ),
        plan=PlanSettings(
            budget=str(budget),
            score=score,
            rank=rank,
            alpha=alpha,
            ranks=tuple(sorted(set(ranks))),
            locks=_texts(locks),
            memory=memory or MemorySettings(),
        ),
        seed=seed,
    )
    return _run(model, tokenizer, data, settings, progress or Silent())


def _run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: str | Path | Iterable[Mapping[str, Any]] | None,
    settings: RankSettings,
    progress: Progress,
) -> RankResult:
    identity = identify(model, settings.model.model, getattr(model.config, "_commit_hash", None))
    examples = _examples(data, settings)
    found = score_model(model, tokenizer, identity, examples, settings, progress)
    assert found is not None  # noqa: S101 - a process alone is the main one
    report, allocation = found
    plan = make_plan(report, allocation)
    return RankResult(report=report, plan=plan, allocation=allocation)


def _texts(given: Iterable[str]) -> tuple[str, ...]:
    """Several texts, or one that somebody forgot to put into a list."""
    return (given,) if isinstance(given, str) else tuple(given)


def _examples(
    data: str | Path | Iterable[Mapping[str, Any]] | None, settings: RankSettings
) -> ExampleSet:
    if data is None or isinstance(data, str | Path):
        return read_examples(settings.data, seed=settings.seed)
    rows = list(data)
    if isinstance(data, Mapping) or not all(isinstance(row, Mapping) for row in rows):
        raise DataError(
            "data is neither a name, a path, nor a list of mappings.",
            hint='Give rows such as {"prompt": ..., "completion": ...}; of a DatasetDict, a split.',
        )
    drawn = draw_rows(rows, settings.data.samples, settings.seed)
    return example_set(drawn, "examples in memory", settings.data)
