"""`rank` of a model in memory: candidates, probes, measuring, scores, plan."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import CaptureError
from hlscore.flow.result import RankResult, result_of
from hlscore.flow.weights_alone import modules_to_plan, weight_statistics
from hlscore.gradients.movement import with_enough_probes, with_movement
from hlscore.gradients.passes import weights_as_trained
from hlscore.gradients.run import capture, reduce
from hlscore.gradients.sources import out_of_reach
from hlscore.inputs.formats import ExampleSet
from hlscore.inputs.model import input_device
from hlscore.inputs.modules import candidates_of
from hlscore.memory import is_out_of_memory
from hlscore.planning.problem import check_run_settings
from hlscore.probes.encode import encode, length_limit
from hlscore.probes.units import ProbeSet
from hlscore.processes import Processes
from hlscore.records import ModelIdentity
from hlscore.rollouts.reading import rollouts_from
from hlscore.rollouts.records import RolloutJournal, RolloutSet
from hlscore.rollouts.rewards import Reward, RewardProcess
from hlscore.rollouts.sampling import sample_completions
from hlscore.scores.registry import find_score
from hlscore.settings import RankSettings
from hlscore.steps import Progress
from hlscore.threads import thread_limit, torch_threads
from hlscore.unfinished import (
    UnfinishedRun,
    describe_run,
    nothing_to_resume,
    unfinished_runs,
)


def rank_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    identity: ModelIdentity,
    examples: ExampleSet | RolloutSet | ProbeSet,
    settings: RankSettings,
    progress: Progress,
    *,
    functions: Mapping[str, Reward] | None = None,
    processes: Processes = Processes(),
    storage: UnfinishedRun | None = None,
    sampled: Callable[[RolloutSet], None] = lambda _: None,
) -> RankResult | None:
    """Probe a model, score its modules and allocate the budget.

    Stored progress stays: it is removed when the results are written.

    Args:
        model: The model with weights; comes back as it was.
        tokenizer: Not used where the examples are tokenized.
        functions: Reward functions by name, of the Python API.
        sampled: Receives the completions that the model sampled, before they are probed.

    Returns:
        Report, plan and completions; `None` in all but the main process.
    """
    check_run_settings(settings)
    score = find_score(settings.plan.score)
    modules = modules_to_plan(model, identity, settings)
    planned = candidates_of(modules)
    decided, remarks = with_movement(model, planned, settings)
    rollouts = None
    if settings.objective.samples_rollouts and isinstance(examples, ExampleSet):
        examples = rollouts = sample_rollouts(
            model, tokenizer, identity, examples, settings, progress,
            functions=functions, processes=processes, storage=storage,
        )  # fmt: skip
        sampled(rollouts)
    earlier_seconds = 0.0
    if isinstance(examples, RolloutSet):
        earlier_seconds = examples.seconds
        if storage is not None and storage.resume:
            # The run may have been stopped while it sampled.
            stored = any(processes.gather(unfinished_runs(storage.folder, (".safetensors",))))
            storage = replace(storage, resume=stored)
    probes, settings, few = encode_probes(model, tokenizer, examples, settings, decided)
    remarks = (*remarks, *few)

    began = time.perf_counter()
    modules = tuple(
        item if item.skipped else replace(item, left_out=out_of_reach(model, item))
        for item in modules
    )
    chosen = candidates_of(modules)
    with _computing(model):
        captured = capture(model, chosen, identity, probes, settings, progress, processes, storage)
        weights = None
        if settings.weight_scores or score.reads_weights:
            weights = weight_statistics(
                model, chosen, captured.reduction.ranks, progress, processes
            )
        if not processes.is_main:
            return None
        statistics = reduce(model, chosen, captured, settings, progress)
    remarks = (*remarks, *captured.notes)
    if left_out := len(planned) - len(chosen):
        remarks = (
            *remarks,
            f"{left_out:,} of {len(planned):,} modules are left out: no linear layer computes with "
            "their weights, which are sharded or offloaded.",
        )
    return result_of(
        settings,
        modules,
        identity,
        replace(probes.summary, mean_loss=captured.mean_loss),
        ranks=captured.reduction.ranks,
        statistics=statistics,
        weights=weights,
        seconds=earlier_seconds + captured.earlier_seconds + time.perf_counter() - began,
        estimator=captured.estimator,
        device=input_device(model),
        dtype=str(model.dtype).removeprefix("torch."),
        sketch_size=captured.sketch_size,
        trial_rate=captured.trial_rate,
        trial_steps=captured.trial_steps,
        notes=remarks,
        rollouts=rollouts,
    )


def encode_probes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: ExampleSet | RolloutSet | ProbeSet,
    settings: RankSettings,
    decided: RankSettings,
) -> tuple[ProbeSet, RankSettings, tuple[str, ...]]:
    """Tokenize probe examples as the settings of a run say.

    Args:
        settings: As they were given.
        decided: With the movement that the model allows.

    Returns:
        The probes, the settings with the movement that they allow too, and a note if it changed.
    """
    if isinstance(examples, ExampleSet) and examples.format == "rollouts":
        examples = rollouts_from(
            examples, tokenizer, model, samples=settings.data.samples, seed=settings.seed
        )

    def encoded(settings: RankSettings) -> ProbeSet:
        if isinstance(examples, ProbeSet):
            return examples
        by_trials = settings.capture.movement == "trial"
        return encode(
            examples,
            tokenizer,
            model,
            objective=settings.objective,
            max_length=settings.data.max_length,
            groups=settings.capture.groups,
            seed=settings.seed,
            # With trials each group is the data of one.
            batch_size=None if by_trials else settings.capture.batch_size,
        )

    probes = encoded(decided)
    enough, notes = with_enough_probes(probes, settings, decided)
    return probes if enough is decided else encoded(enough), enough, notes


def sample_rollouts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    identity: ModelIdentity,
    examples: ExampleSet,
    settings: RankSettings,
    progress: Progress,
    *,
    functions: Mapping[str, Reward] | None = None,
    processes: Processes = Processes(),
    storage: UnfinishedRun | None = None,
) -> RolloutSet:
    """Let a model complete prompts, and judge what it wrote; see `rank_model`."""
    # What would be refused afterwards is refused before.
    length_limit(model, settings.data.max_length, default=None)
    journal = None
    if storage is not None:
        # All columns, in order: rewards may read any of them.
        rows = json.dumps([dict(row) for row in examples.rows], default=str, skipkeys=True)
        run = describe_run(
            settings.sampling(),
            identity,
            f"sha256:{hashlib.sha256(rows.encode()).hexdigest()}",
            device=input_device(model).type,
            processes=processes.size,
        )
        journal = RolloutJournal(storage.folder, run, processes)
        if storage.resume and not any(processes.gather(journal.exists())):
            raise nothing_to_resume(storage.folder)
    rewards = RewardProcess.of(settings.objective, functions)
    with _computing(model):
        return sample_completions(
            model, tokenizer, examples, settings.objective, rewards, progress,
            seed=settings.seed, processes=processes, journal=journal,
        )  # fmt: skip


@contextmanager
def _computing(model: PreTrainedModel) -> Iterator[None]:
    """Weights as trained, no more threads than there is CPU time for, and clear memory errors."""
    on_cpu = input_device(model).type == "cpu"
    threads = torch_threads(thread_limit()) if on_cpu else nullcontext()
    try:
        with torch.inference_mode(False), weights_as_trained(model), threads:
            yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise CaptureError(
            "The device ran out of memory, also with a single example at a time.",
            hint="Use --estimator sketch, a smaller --max-length, --dtype bfloat16, --load-in "
            "4bit, or --include fewer modules. `--dry-run` predicts the memory.",
        ) from error
