"""The flow without probes: weights, scores, plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from hlscore.flow.result import RankResult, result_of
from hlscore.gradients.statistics import curve_ranks
from hlscore.inputs.model import input_device, resolve_device
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.stored_weights import StoredWeights
from hlscore.inputs.weights import dense_weight
from hlscore.memory import worker_count
from hlscore.planning.problem import check_plan_for, check_run_settings
from hlscore.processes import Processes
from hlscore.records import NO_PROBES, Candidate, ModelIdentity, WeightStatistics
from hlscore.settings import RankSettings
from hlscore.steps import Progress
from hlscore.threads import workers
from hlscore.weights.decomposition import decomposition_bytes, measure_weight


def score_weights(
    settings: RankSettings,
    progress: Progress,
    held: tuple[PreTrainedModel, ModelIdentity] | None = None,
) -> RankResult:
    """Score weights without probes, and allocate the budget.

    Args:
        held: A model in memory, which is only read. Without one the files of the model that the
            settings name are read tensor by tensor, and no model is loaded.
    """
    check_run_settings(settings)
    ranks = curve_ranks(settings.plan.rank, also=settings.plan.ranks)
    if held is None:
        device = resolve_device(settings.model.device)
        stored, modules = opened(settings)
        chosen = candidates_of(modules)
        began = time.perf_counter()
        with _decomposing(chosen, ranks, device, progress) as (found, use):
            identity = stored.identity(
                stored.read(chosen, lambda item, held: use(item, held.pop()))
            )
        dtype = stored.dtype(chosen)
    else:
        model, identity = held
        device, dtype = input_device(model), str(model.dtype).removeprefix("torch.")
        modules = modules_to_plan(model, identity, settings)
        began = time.perf_counter()
        found = weight_statistics(model, candidates_of(modules), ranks, progress)
    return result_of(
        settings,
        modules,
        identity,
        NO_PROBES,
        ranks=ranks,
        weights=found,
        seconds=time.perf_counter() - began,
        device=device,
        dtype=dtype,
    )


def modules_to_plan(
    model: PreTrainedModel, identity: ModelIdentity, settings: RankSettings
) -> tuple[Candidate, ...]:
    """Modules of a model; a budget or a lock that cannot work for them is refused."""
    modules = find_modules(model, settings.candidates)
    check_plan_for(identity, modules, settings.plan)
    return modules


def opened(settings: RankSettings) -> tuple[StoredWeights, tuple[Candidate, ...]]:
    """Open the files of a model, and refuse what cannot be planned or is not in them."""
    stored = StoredWeights(settings.model)
    modules = modules_to_plan(stored.shape, stored.identity(), settings)
    stored.check(candidates_of(modules))
    return stored, modules


def weight_statistics(
    model: PreTrainedModel,
    chosen: tuple[Candidate, ...],
    ranks: tuple[int, ...],
    progress: Progress,
    processes: Processes = Processes(),
) -> dict[str, WeightStatistics]:
    """Statistics of the weights of a model in memory, by module name, in the main process."""
    if not processes.is_main:  # sharded weights are gathered by all
        for item in chosen:
            dense_weight(model, item)
        return {}
    with _decomposing(chosen, ranks, input_device(model), progress) as (found, use):
        for item in chosen:
            use(item, dense_weight(model, item))
    return found


@contextmanager
def _decomposing(
    chosen: tuple[Candidate, ...], ranks: tuple[int, ...], device: torch.device, progress: Progress
) -> Iterator[tuple[dict[str, WeightStatistics], Callable[[Candidate, torch.Tensor | None], None]]]:
    """Spread the decompositions of weights over threads; an accelerator takes one at a time.

    Yields:
        Statistics by module name, complete when the block ends, and a function that takes one
        weight; it waits while all threads are busy.
    """
    found: dict[str, WeightStatistics] = {}
    sizes = {item.module: item.n_weights for item in chosen}

    def done(ended: tuple[str, WeightStatistics]) -> None:
        name, found[name] = ended
        progress.advance(sizes[name])

    largest = max(4 * sizes[item.module] + decomposition_bytes(item) for item in chosen)
    count = worker_count(largest) if device.type in ("cpu", "mps") else 0
    progress.start("decomposing", sum(sizes.values()), "weights")
    # A single worker would only hold a second weight beside the one that is being read.
    with workers(count if count > 1 else 0, done) as submit:

        def use(item: Candidate, weight: torch.Tensor | None) -> None:
            submit(lambda: (item.module, measure_weight(weight, item, ranks, device)))

        yield found, use
