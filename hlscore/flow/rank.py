"""`rank` of a model in memory: candidates, probes, measuring, scores, plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import UsageError
from hlscore.flow.result import RankResult, run_info, with_plan
from hlscore.flow.weights_alone import weights_beside
from hlscore.gradients.capture import weights_as_trained
from hlscore.gradients.estimator import with_movement
from hlscore.gradients.progress import Storage
from hlscore.gradients.run import CaptureRun, memory_errors, weight_norms
from hlscore.gradients.sources import out_of_reach
from hlscore.inputs.formats import ExampleSet
from hlscore.inputs.model import input_device
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.planning.problem import check_plan_for, check_plan_settings
from hlscore.probes.encode import encode
from hlscore.probes.encoding import length_limit
from hlscore.probes.units import ProbeSet
from hlscore.processes import Processes
from hlscore.records import (
    Candidate,
    ModelIdentity,
    ScoreReport,
)
from hlscore.rollouts.files import RolloutJournal
from hlscore.rollouts.prompts import prompts_hash
from hlscore.rollouts.reading import rollouts_from
from hlscore.rollouts.records import RolloutSet
from hlscore.rollouts.reward_process import Reward
from hlscore.rollouts.sampling import Sampler, rewards_of
from hlscore.scores.registry import find_score
from hlscore.scores.rows import build_rows, order_rows
from hlscore.settings import RankSettings
from hlscore.steps import Progress
from hlscore.threads import thread_limit, torch_threads
from hlscore.unfinished import captures_stored, describe_run, nothing_to_resume


def rank_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    identity: ModelIdentity,
    examples: ExampleSet | RolloutSet,
    settings: RankSettings,
    progress: Progress,
    *,
    functions: Mapping[str, Reward] | None = None,
    processes: Processes = Processes(),  # noqa: B008 - frozen
    storage: Storage | None = None,
    sampled: Callable[[RolloutSet], None] = lambda _: None,
) -> RankResult | None:
    """Probe a model, score its modules and allocate the budget.

    Args:
        model: The model with weights; comes back as it was.
        processes: This process among those that share the probes.
        storage: Where progress is stored, if anywhere.

    Returns:
        Report, plan and completions; `None` in all but the main process.
    """
    check_plan_settings(settings.plan)
    modules = find_modules(model, settings.candidates)
    check_plan_for(identity, modules, settings.plan)
    settings = with_movement(model, candidates_of(modules), settings)
    if settings.capture.movement == "trial" and not find_score(settings.plan.score).reads_gradients:
        raise UsageError(
            f"--movement trial is given, but --score {settings.plan.score} does not use trials.",
            hint="Remove --movement, or use --score hls with --weight-scores for both.",
        )
    rollouts = None
    if settings.objective.samples_rollouts and isinstance(examples, ExampleSet):
        examples = rollouts = sample_rollouts(
            model, tokenizer, identity, examples, settings, progress,
            functions=functions, processes=processes, storage=storage,
        )  # fmt: skip
        sampled(rollouts)
    probes = encode_probes(model, tokenizer, examples, settings)
    if storage is not None and storage.resume and isinstance(examples, RolloutSet):
        # The run may have been stopped while it sampled.
        stored = any(processes.gather(captures_stored(storage.folder)))
        storage = replace(storage, resume=stored)
    return score_probes(
        model,
        modules,
        identity,
        probes,
        settings,
        progress,
        processes=processes,
        storage=storage,
        earlier_seconds=examples.seconds if isinstance(examples, RolloutSet) else 0.0,
        rollouts=rollouts,
    )


def score_probes(
    model: PreTrainedModel,
    modules: tuple[Candidate, ...],
    identity: ModelIdentity,
    probes: ProbeSet,
    settings: RankSettings,
    progress: Progress,
    *,
    processes: Processes = Processes(),  # noqa: B008 - frozen
    storage: Storage | None = None,
    earlier_seconds: float = 0.0,
    rollouts: RolloutSet | None = None,
) -> RankResult | None:
    """Do what `rank_model` does, from tokenized probes on.

    Args:
        model: The model with weights; comes back as it was.
        processes: This process among those that share the probes.
        storage: Where progress is stored, if anywhere.
    """
    began = time.perf_counter()
    planned = len(candidates_of(modules))
    modules = tuple(
        item if item.skipped else replace(item, left_out=out_of_reach(model, item))
        for item in modules
    )
    chosen = candidates_of(modules)
    left_out = planned - len(chosen)
    with torch.inference_mode(False), memory_errors(), weights_as_trained(model), _threads(model):
        run = CaptureRun(model, chosen, identity, probes, settings, processes, storage)
        mean_loss = run.probe(progress)
        norms = weight_norms(model, chosen) if run.sketched else {}
        weights = weights_beside(model, chosen, settings, run.ranks, progress, processes)
        if not processes.is_main:
            return None
        statistics = run.reduce(progress, norms)
    rank, score = settings.plan.rank, find_score(settings.plan.score)
    rows = build_rows(
        modules,
        statistics=statistics,
        weights=weights,
        ranks=run.ranks,
        rank=rank,
        seed=settings.seed,
    )
    # That gradients are summed exactly is what one expects.
    notes = [*([run.choice.reason] if run.sketched else []), *run.notes]
    if left_out:
        notes.append(
            f"{left_out:,} of {planned:,} modules are left out: no linear layer computes with "
            "their weights, which are sharded or offloaded."
        )
    report = ScoreReport(
        rows=order_rows(rows, score, rank),
        model=identity,
        probes=replace(probes.summary, mean_loss=mean_loss),
        run=run_info(
            settings,
            seconds=earlier_seconds + run.earlier_seconds + time.perf_counter() - began,
            estimator=run.choice.estimator,
            sketch_size=run.choice.sketch_size if run.sketched else None,
            trial_rate=run.trial_rate,
            device=input_device(model),
            dtype=str(model.dtype).removeprefix("torch."),
            notes=tuple(notes),
        ),
    )
    result = with_plan(report, settings.plan, rollouts)
    if run.file is not None:
        run.file.forget()
    return result


def encode_probes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: ExampleSet | RolloutSet,
    settings: RankSettings,
) -> ProbeSet:
    """Tokenize probe examples as the settings of a run say."""
    if isinstance(examples, ExampleSet) and examples.format == "rollouts":
        examples = rollouts_from(
            examples, tokenizer, model, samples=settings.data.samples, seed=settings.seed
        )
    return encode(
        examples,
        tokenizer,
        model,
        objective=settings.objective,
        max_length=settings.data.max_length,
        groups=settings.capture.groups,
        seed=settings.seed,
        # With trials each group is the data of one.
        batch_size=None if settings.capture.movement == "trial" else settings.capture.batch_size,
    )


def sample_rollouts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    identity: ModelIdentity,
    examples: ExampleSet,
    settings: RankSettings,
    progress: Progress,
    *,
    functions: Mapping[str, Reward] | None = None,
    processes: Processes = Processes(),  # noqa: B008 - frozen
    storage: Storage | None = None,
) -> RolloutSet:
    """Let a model complete prompts, and judge what it wrote.

    Args:
        model: The model with weights; comes back as it was.
        processes: This process among those that share the prompts.
        storage: Where finished groups are stored, if anywhere.
    """
    # What would be refused afterwards is refused before.
    length_limit(model, settings.data.max_length, default=None)
    journal = None
    if storage is not None:
        about = describe_run(
            settings.sampling(),
            identity,
            prompts_hash(examples),
            device=input_device(model).type,
            processes=processes.size,
        )
        journal = _journal(storage, about, processes)
    sampler = Sampler(
        model,
        tokenizer,
        settings.objective,
        rewards_of(settings.objective, functions or {}),
        seed=settings.seed,
    )
    with torch.inference_mode(False), memory_errors(), weights_as_trained(model), _threads(model):
        return sampler.run(
            examples,
            progress,
            processes=processes,
            journal=journal,
            resume=storage is not None and storage.resume,
        )


def _threads(model: PreTrainedModel) -> AbstractContextManager[None]:
    """No more threads than there is CPU time for, where the CPU computes."""
    on_cpu = input_device(model).type == "cpu"
    return torch_threads(thread_limit()) if on_cpu else nullcontext()


def _journal(storage: Storage, about: Mapping[str, object], processes: Processes) -> RolloutJournal:
    journal = RolloutJournal(storage.folder, about, processes)
    if storage.resume and not any(processes.gather(journal.exists())):
        raise nothing_to_resume(storage.folder)
    return journal
