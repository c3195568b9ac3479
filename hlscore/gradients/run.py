"""From probes to statistics: try the model, choose an estimator, capture, reduce."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from hlscore.gradients.estimator import choose_estimator
from hlscore.gradients.jackknife import draw_resamples
from hlscore.gradients.movement import trial_steps
from hlscore.gradients.probe_run import ProbeRun
from hlscore.gradients.progress import ProgressFile
from hlscore.gradients.self_check import check_weights_kept, sampled_parameters, try_model
from hlscore.gradients.sketch import TestMatrices
from hlscore.gradients.sketched import SketchGradients
from hlscore.gradients.sources import observed_sources, weight_sources
from hlscore.gradients.statistics import Reduction, curve_ranks, reduce_gradients, reduce_sketches
from hlscore.gradients.sums import ExactGradients
from hlscore.gradients.trials import TrialRun
from hlscore.inputs.model import input_device
from hlscore.inputs.weights import dense_weight, is_sharded
from hlscore.memory import worker_count
from hlscore.probes.units import ProbeSet
from hlscore.processes import Processes
from hlscore.records import Candidate, GradientStatistics, ModelIdentity
from hlscore.settings import RankSettings
from hlscore.steps import Progress
from hlscore.threads import workers
from hlscore.unfinished import UnfinishedRun, describe_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """The gradients or updates of all modules, and how they were captured."""

    gradients: ExactGradients | SketchGradients
    reduction: Reduction
    norms: Mapping[str, float | None]  # Frobenius norms of the weights, by module
    mean_loss: float  # nats per counted token
    estimator: str
    sketch_size: int | None  # `None` where gradients are summed exactly
    trial_rate: float | None  # `None` without trials
    trial_steps: int | None  # of every trial
    earlier_seconds: float  # what a resumed run took before
    notes: tuple[str, ...]


def capture(
    model: PreTrainedModel,
    chosen: tuple[Candidate, ...],
    identity: ModelIdentity,
    probes: ProbeSet,
    settings: RankSettings,
    progress: Progress,
    processes: Processes,
    storage: UnfinishedRun | None,
) -> Captured:
    """Run the probes through a model and capture the gradient or the update of every module."""
    wanted, device, notes = settings.capture, input_device(model), list[str]()
    by_trials, on_host = wanted.movement == "trial", wanted.sums_on_host(device.type)
    if by_trials:
        # Each trial is one update, however many tokens it saw.
        probes = replace(probes, counts=tuple((1,) * len(half) for half in probes.counts))

    # Sharded weights change their form when they are gathered: no sample would compare them.
    sharded = is_sharded(model)
    samples = {} if sharded else sampled_parameters(model)
    difference, later, rounding = try_model(model, probes)
    check_weights_kept(identity.model, samples, model)
    if any(processes.gather(not difference <= rounding)) and wanted.batch_size != 1:
        wanted = replace(wanted, batch_size=1)
        notes.append(
            "Examples run one at a time: in a padded batch their tokens get other "
            f"probabilities (by {difference:.2g} nats) than alone."
        )
    later = max(processes.gather(later))
    if later > rounding:
        notes.append(
            f"{type(model).__name__} is not causal on text alone: later tokens change the "
            f"probabilities of earlier ones (by {later:.2g} nats), so the loss says little."
        )

    # Shares of probes may be stored at different moments; trials and sharded passes go in step.
    together = sharded or by_trials
    file = None if storage is None else ProgressFile(storage, processes, together=together)
    earlier = file if storage is not None and storage.resume else None
    known: Mapping[str, Any] = {}
    if earlier is not None and wanted.estimator == "auto":
        known = earlier.stored_identity()
    choice = choose_estimator(
        model, chosen, probes, settings,
        device=device, reserved_bytes=0, itemsize=model.dtype.itemsize,
        packed=sharded or any(item.quantized for item in chosen), processes=processes,
        # Not there where nothing is stored, or by a version that is refused later.
        stored=(str(known["estimator"]), str(known["reason"]))
        if known.keys() >= {"estimator", "reason"}
        else None,
    )  # fmt: skip
    sketched = choice.estimator == "sketch"
    if sketched:  # that gradients are summed exactly is what one expects
        notes.insert(0, choice.reason)
    if file is not None:
        file.identity = {
            **describe_run(
                asdict(settings),
                identity,
                probes.summary.hash,
                device=device.type,
                processes=processes.size,
            ),
            "estimator": choice.estimator,
            "reason": choice.reason,
            "batch_size": wanted.batch_size,
        }

    resamples = draw_resamples(*probes.counts, count=wanted.bootstrap, seed=settings.seed)
    tests = TestMatrices(size=choice.sketch_size, seed=settings.seed)
    first, second = map(len, probes.counts)
    groups = None if resamples is None else (first, second)
    gradients: ExactGradients | SketchGradients
    if sketched:
        gradients = SketchGradients(chosen, tests, groups=groups)
    else:
        gradients = ExactGradients(chosen, tests, groups=groups, on_host=on_host)
    if sketched and not by_trials:
        sources = observed_sources(model, chosen, probes.sequences[0].input_ids[:8])
    else:  # trials move the weights themselves, whatever their updates are reduced to
        sources = weight_sources(model, chosen)
    run = (TrialRun if by_trials else ProbeRun)(
        model=model, probes=probes, gradients=gradients, sources=sources, settings=wanted,
        objective=settings.objective, seed=settings.seed, progress=progress, processes=processes,
        file=file,
    )  # fmt: skip
    if earlier is not None:
        run.state, state = earlier.load(run.state, torch.device("cpu") if on_host else device)
        gradients.tensors.update(state)
    mean_loss = run.run()
    check_weights_kept(identity.model, samples, model)
    norms: dict[str, float | None] = {}
    for item in chosen:  # in every process, as they share sharded weights
        weight = dense_weight(model, item)
        norm = None if weight is None else float(torch.linalg.vector_norm(weight.float()))
        norms[item.module] = norm
    largest = choice.sketch_size // 2 if sketched else None
    return Captured(
        gradients=gradients,
        reduction=Reduction(
            rank=settings.plan.rank,
            ranks=curve_ranks(settings.plan.rank, largest, also=settings.plan.ranks),
            counts=(sum(probes.counts[0]), sum(probes.counts[1])),
            svd=wanted.svd,
            seed=settings.seed,
            resamples=resamples,
        ),
        norms=norms,
        mean_loss=mean_loss,
        estimator=choice.estimator,
        sketch_size=choice.sketch_size if sketched else None,
        trial_rate=run.state.rate if by_trials else None,
        trial_steps=trial_steps(probes, wanted),
        earlier_seconds=0.0 if file is None else file.earlier_seconds,
        notes=(*notes, *run.notes()),
    )


def reduce(
    model: PreTrainedModel,
    chosen: tuple[Candidate, ...],
    captured: Captured,
    settings: RankSettings,
    progress: Progress,
) -> dict[str, GradientStatistics]:
    """Reduce one module after the other; what was captured of it is then forgotten."""
    gradients, reduction = captured.gradients, captured.reduction
    progress.start("scoring", len(chosen), "modules")
    statistics: dict[str, GradientStatistics] = {}

    def reduce_module(item: Candidate) -> tuple[str, GradientStatistics]:
        name, norm = item.module, captured.norms[item.module]
        if isinstance(gradients, SketchGradients):
            sketches, groups = gradients.take(name, reduction.counts)
            return name, reduce_sketches(sketches, norm, groups, reduction, name=name)
        means, groups = gradients.take(name, reduction.counts)
        by_trials = captured.trial_rate is not None
        weight = None if by_trials else model.get_parameter(item.parameter)
        found = reduce_gradients(means, norm, groups, reduction, weight=weight, name=name)
        return name, found

    def done(found: tuple[str, GradientStatistics]) -> None:
        statistics[found[0]] = found[1]
        progress.advance(1)

    def work_bytes(item: Candidate) -> int:
        """Memory that reducing one module takes besides its sums, an estimate."""
        short, long = item.max_rank, max(item.out_features, item.in_features)
        width = min(long, captured.sketch_size or long)
        # Both halves in float64, the mean and its signs; Gram matrices and their vectors.
        return item.matrices * (40 * short * width + 64 * min(short, width) ** 2)

    # The largest first, so that no thread is left with one of them when the others have ended.
    ordered = sorted(chosen, key=work_bytes, reverse=True)
    device = input_device(model).type
    sums_on_host = captured.sketch_size is None and settings.capture.sums_on_host(device)
    on_cpu = sums_on_host or device == "cpu"
    with workers(worker_count(work_bytes(ordered[0])) if on_cpu else 0, done) as submit:
        for item in ordered:
            submit(partial(reduce_module, item))
    return {item.module: statistics[item.module] for item in chosen}
