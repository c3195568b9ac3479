"""The flow without probes: weights, scores, plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from hlscore.flow.result import RankResult, run_info, with_plan
from hlscore.gradients.memory import worker_count
from hlscore.gradients.statistics import curve_ranks
from hlscore.inputs.model import input_device, resolve_device
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.stored_weights import StoredWeights
from hlscore.inputs.weights import dense_weight
from hlscore.planning.problem import check_plan_for, check_plan_settings
from hlscore.processes import Processes
from hlscore.records import (
    NO_PROBES,
    Candidate,
    ModelIdentity,
    RunInfo,
    ScoreReport,
    WeightStatistics,
)
from hlscore.scores.registry import check_without_probes, find_score
from hlscore.scores.rows import build_rows, order_rows
from hlscore.settings import RankSettings
from hlscore.steps import Progress
from hlscore.threads import Workers
from hlscore.weights.decomposition import decomposition_bytes, measure_weight


def score_stored_weights(settings: RankSettings, progress: Progress) -> RankResult:
    """Score the weights of a checkpoint without loading its model, and allocate the budget."""
    check_plan_settings(settings.plan)
    check_without_probes(settings.plan.score)
    device = resolve_device(settings.model.device)
    stored, modules = opened(settings)
    chosen, ranks = candidates_of(modules), _ranks(settings)
    began = time.perf_counter()
    with _decomposing(chosen, ranks, device, progress) as (found, use):
        weights_hash = stored.read(chosen, lambda item, held: use(item, held.pop()))
    identity = stored.identity(weights_hash)
    run = run_info(
        settings,
        seconds=time.perf_counter() - began,
        estimator="none",
        device=device,
        dtype=stored.dtype(chosen),
    )
    return _report(modules, found, identity, run, settings)


def opened(settings: RankSettings) -> tuple[StoredWeights, tuple[Candidate, ...]]:
    """Open the files of a model, and refuse what cannot be planned or is not in them."""
    stored = StoredWeights(settings.model)
    modules = find_modules(stored.shape, settings.candidates)
    check_plan_for(stored.identity(), modules, settings.plan)
    stored.check(candidates_of(modules))
    return stored, modules


def score_held_weights(
    model: PreTrainedModel, identity: ModelIdentity, settings: RankSettings, progress: Progress
) -> RankResult:
    """Score the weights of a model in memory without probing it, and allocate the budget.

    Args:
        model: The model with weights; it is only read.
    """
    check_plan_settings(settings.plan)
    check_without_probes(settings.plan.score)
    modules = find_modules(model, settings.candidates)
    check_plan_for(identity, modules, settings.plan)
    began = time.perf_counter()
    found = _held(model, candidates_of(modules), _ranks(settings), progress)
    run = run_info(
        settings,
        seconds=time.perf_counter() - began,
        estimator="none",
        device=input_device(model),
        dtype=str(model.dtype).removeprefix("torch."),
    )
    return _report(modules, found, identity, run, settings)


def weights_beside(
    model: PreTrainedModel,
    chosen: tuple[Candidate, ...],
    settings: RankSettings,
    ranks: tuple[int, ...],
    progress: Progress,
    processes: Processes,
) -> dict[str, WeightStatistics] | None:
    """Score the weights of a model that is probed too, where that is asked for.

    Args:
        model: The model with weights; it is only read.
        processes: This process among those that share the probes; all take part where weights
            are sharded, and the main one decomposes.

    Returns:
        Statistics by module name; `None` where nobody asked for them.
    """
    if not (settings.weight_scores or find_score(settings.plan.score).reads_weights):
        return None
    if processes.is_main:
        return _held(model, chosen, ranks, progress)
    for item in chosen:
        dense_weight(model, item)
    return None


def _held(
    model: PreTrainedModel,
    chosen: tuple[Candidate, ...],
    ranks: tuple[int, ...],
    progress: Progress,
) -> dict[str, WeightStatistics]:
    with _decomposing(chosen, ranks, input_device(model), progress) as (found, use):
        for item in chosen:
            use(item, dense_weight(model, item))
    return found


@contextmanager
def _decomposing(
    chosen: tuple[Candidate, ...],
    ranks: tuple[int, ...],
    device: torch.device,
    progress: Progress,
) -> Iterator[tuple[dict[str, WeightStatistics], Callable[[Candidate, torch.Tensor | None], None]]]:
    """Spread the decompositions of weights over threads.

    Args:
        device: Where to compute; an accelerator decomposes one weight after the other.

    Yields:
        Statistics by module name, complete when the block ends, and a function that takes one
        weight; it waits while all threads are busy.
    """
    found: dict[str, WeightStatistics] = {}

    def done(ended: tuple[Candidate, WeightStatistics]) -> None:
        item, found[item.module] = ended
        progress.advance(_numbers(item))

    largest = max(4 * _numbers(item) + decomposition_bytes(item) for item in chosen)
    count = worker_count(largest) if device.type in ("cpu", "mps") else 0
    # A single worker would only hold a second weight beside the one that is being read.
    count = count if count > 1 else 0
    progress.start("decomposing", sum(_numbers(item) for item in chosen), "weights")
    with Workers(count, done) as workers:

        def use(item: Candidate, weight: torch.Tensor | None) -> None:
            workers.submit(lambda: (item, measure_weight(weight, item, ranks, device)))

        yield found, use


def _numbers(item: Candidate) -> int:
    return item.matrices * item.out_features * item.in_features


def _ranks(settings: RankSettings) -> tuple[int, ...]:
    return curve_ranks(settings.plan.rank, also=settings.plan.ranks)


def _report(
    modules: tuple[Candidate, ...],
    found: Mapping[str, WeightStatistics],
    identity: ModelIdentity,
    run: RunInfo,
    settings: RankSettings,
) -> RankResult:
    plan = settings.plan
    rows = build_rows(
        modules, weights=found, ranks=_ranks(settings), rank=plan.rank, seed=settings.seed
    )
    ordered = order_rows(rows, find_score(plan.score), plan.rank)
    report = ScoreReport(rows=ordered, model=identity, probes=NO_PROBES, run=run)
    return with_plan(report, plan)
