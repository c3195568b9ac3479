"""The one flow: model and probes, gradients, scores, plan."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore._version import __version__
from hlscore.errors import CaptureError
from hlscore.gradients.bootstrap import draw_resamples
from hlscore.gradients.exact import ExactGradients, exact_bytes, group_sketch_size
from hlscore.gradients.probe_run import run_probes
from hlscore.gradients.spectrum import curve_ranks
from hlscore.gradients.statistics import Reduction, reduce_gradients
from hlscore.inputs.examples import ExampleSet
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.probes import ProbeSet, encode
from hlscore.planning.allocation import Allocation, allocate, check_plan_settings
from hlscore.planning.budget import parse_budget
from hlscore.records import (
    Candidate,
    GradientStatistics,
    ModelIdentity,
    RunInfo,
    ScoreReport,
)
from hlscore.scores.registry import find_score
from hlscore.scores.rows import build_rows, order_rows
from hlscore.settings import RankSettings

ESTIMATOR = "exact"
_HOST_MEMORY_WORDS = ("not enough memory", "can't allocate memory")


class Progress(Protocol):
    """What the flow tells a progress display."""

    def start(self, what: str, total: int, unit: str) -> None:
        """Begin a step of `total` units."""

    def advance(self, amount: int) -> None:
        """Report units done."""


class Silent:
    """A progress display that shows nothing."""

    def start(self, what: str, total: int, unit: str) -> None:
        """Ignore the step."""

    def advance(self, amount: int) -> None:
        """Ignore the units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run would do, known before any weight is loaded.

    Attributes:
        modules: Every module found, skipped ones too.
        probes: The probe examples.
        estimator: How gradients would be captured.
        weight_bytes: Memory of the weights.
        gradient_bytes: Memory of the gradient sums and group sketches.
        budget_unit: `module` or `parameter`.
        budget_limit: How many of them the budget allows in full.
    """

    modules: tuple[Candidate, ...]
    probes: ProbeSet
    estimator: str
    weight_bytes: int
    gradient_bytes: int
    budget_unit: str
    budget_limit: int


def forecast(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: ExampleSet,
    settings: RankSettings,
    dtype: torch.dtype,
) -> Forecast:
    """Say what a run would do.

    Args:
        model: The model, on the meta device.
        tokenizer: Its tokenizer.
        examples: The probe examples.
        settings: Settings of the run.
        dtype: Dtype that the weights would have.

    Returns:
        The forecast.
    """
    modules = find_modules(model, settings.candidates)
    chosen = candidates_of(modules)
    probes = encode_probes(model, tokenizer, examples, settings)
    groups = probes.summary.groups if settings.capture.bootstrap else 0
    shapes = [(item.matrices, item.out_features, item.in_features) for item in chosen]
    budget = parse_budget(settings.plan.budget)
    return Forecast(
        modules=modules,
        probes=probes,
        estimator=ESTIMATOR,
        weight_bytes=sum(p.numel() for p in model.parameters()) * dtype.itemsize,
        gradient_bytes=exact_bytes(
            shapes, groups=groups, sketch_size=group_sketch_size(settings.plan.rank)
        ),
        budget_unit=budget.unit.removesuffix("s"),
        budget_limit=budget.limit([item.n_params for item in chosen]),
    )


def encode_probes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: ExampleSet,
    settings: RankSettings,
) -> ProbeSet:
    """Tokenize probe examples as the settings of a run say."""
    return encode(
        examples,
        tokenizer,
        model,
        max_length=settings.data.max_length,
        groups=settings.capture.groups,
        seed=settings.seed,
    )


def score_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    identity: ModelIdentity,
    examples: ExampleSet,
    settings: RankSettings,
    progress: Progress,
) -> tuple[ScoreReport, Allocation]:
    """Probe a model, score its modules and allocate the budget.

    Args:
        model: The model with weights; comes back as it was.
        tokenizer: Its tokenizer.
        identity: What the artifacts say about the model.
        examples: The probe examples.
        settings: Settings of the run.
        progress: Told about both long steps.

    Returns:
        The report and the plan made from it.

    Raises:
        HlscoreError: Something cannot be used; the message says what.
    """
    check_plan_settings(settings.plan)
    modules = find_modules(model, settings.candidates)
    chosen = candidates_of(modules)
    parse_budget(settings.plan.budget).limit([item.n_params for item in chosen])
    probes = encode_probes(model, tokenizer, examples, settings)
    began = time.perf_counter()
    statistics, mean_loss = _gather(model, chosen, probes, settings, progress)
    rank, score = settings.plan.rank, find_score(settings.plan.score)
    rows = build_rows(modules, statistics, ranks=curve_ranks(rank), rank=rank, seed=settings.seed)
    report = ScoreReport(
        rows=order_rows(rows, score, rank),
        model=identity,
        probes=replace(probes.summary, mean_loss=mean_loss),
        run=_run_info(model, settings, time.perf_counter() - began),
    )
    allocation = allocate(report, settings.plan)
    return with_selection(report, allocation), allocation


def with_selection(report: ScoreReport, allocation: Allocation) -> ScoreReport:
    """Put the selection probabilities of a plan into the rows of its report."""
    shares = {item.row.module: item.row.selection_probability for item in allocation.decisions}
    rows = tuple(replace(row, selection_probability=shares.get(row.module)) for row in report.rows)
    return replace(report, rows=rows)


def _gather(
    model: PreTrainedModel,
    chosen: tuple[Candidate, ...],
    probes: ProbeSet,
    settings: RankSettings,
    progress: Progress,
) -> tuple[dict[str, GradientStatistics], float]:
    """Capture every gradient, then reduce one module after the other."""
    parameters = {item.module: model.get_parameter(item.parameter) for item in chosen}
    tokens = [[sum(e.counted_tokens for e in group) for group in half] for half in probes.halves]
    resamples = draw_resamples(
        tokens[0], tokens[1], count=settings.capture.bootstrap, seed=settings.seed
    )
    with torch.inference_mode(False), _memory_errors(settings):
        gradients = ExactGradients(
            parameters,
            seed=settings.seed,
            sketch_size=group_sketch_size(settings.plan.rank) if resamples is not None else 0,
        )
        progress.start("probing", probes.summary.total_tokens, "tokens")
        mean_loss = run_probes(
            model, probes, parameters, gradients, settings.capture, progress.advance
        )
        reduction = Reduction(
            rank=settings.plan.rank,
            ranks=curve_ranks(settings.plan.rank),
            tokens=(sum(tokens[0]), sum(tokens[1])),
            svd=settings.capture.svd,
            seed=settings.seed,
            resamples=resamples,
        )
        progress.start("scoring", len(parameters), "modules")
        statistics = {}
        for name, parameter in parameters.items():
            statistics[name] = _reduce(gradients, name, parameter, reduction)
            progress.advance(1)
    return statistics, mean_loss


def _reduce(
    gradients: ExactGradients, name: str, parameter: nn.Parameter, reduction: Reduction
) -> GradientStatistics:
    first, second = gradients.means(name, reduction.tokens)
    found = reduce_gradients(first, second, parameter, gradients.group_sketches(name), reduction)
    gradients.forget(name)
    return found


@contextmanager
def _memory_errors(settings: RankSettings) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        on_host = any(words in str(error) for words in _HOST_MEMORY_WORDS)
        if not isinstance(error, torch.OutOfMemoryError) and not on_host:
            raise
        raise CaptureError(
            f"The device ran out of memory with batches of {settings.capture.batch_size}.",
            hint="Use a smaller --batch-size or --max-length, --dtype bfloat16, or --include "
            "fewer modules; large ranks need less with --bootstrap 0. `--dry-run` tells more.",
        ) from error


def _run_info(model: PreTrainedModel, settings: RankSettings, seconds: float) -> RunInfo:
    return RunInfo(
        hlscore_version=__version__,
        settings=asdict(settings),
        seed=settings.seed,
        score=settings.plan.score,
        rank=settings.plan.rank,
        estimator=ESTIMATOR,
        device=_device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "datasets", "numpy")},
        },
        wall_seconds=round(seconds, 3),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
