"""What a run would do, known before any weight is loaded."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.flow.rank import encode_probes
from hlscore.flow.weights_alone import modules_to_plan, opened
from hlscore.gradients.estimator import EstimatorChoice, choose_estimator
from hlscore.gradients.movement import trial_steps, with_movement
from hlscore.inputs.formats import ExampleSet
from hlscore.inputs.hub import BUILTIN_PREFIX, looks_like_path
from hlscore.inputs.identity import identify
from hlscore.inputs.model import planned_dtype, planned_weight_bytes
from hlscore.inputs.modules import candidates_of
from hlscore.inputs.tokens import context_length, embedding_rows, pad_token_id
from hlscore.inputs.trained import open_trained
from hlscore.planning.budget import parse_budget
from hlscore.probes.units import ProbeSet
from hlscore.records import Candidate
from hlscore.rollouts.records import Rollout, RolloutGroup, RolloutSet
from hlscore.rollouts.rewards import RewardProcess
from hlscore.rollouts.sampling import prompts_of, room_for
from hlscore.settings import ObjectiveSettings, RankSettings
from hlscore.weights.decomposition import decomposition_bytes

# Forward, forward again for checkpointed blocks, and both products of the backward pass.
_FLOPS_PER_WEIGHT = 8
_TIMED_SECONDS = 0.1
_TIMED_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run would do, known before any weight is loaded."""

    modules: tuple[Candidate, ...]  # every module found, skipped ones too
    settings: RankSettings  # with what was left to the run decided
    notes: tuple[str, ...]
    probes: ProbeSet
    choice: EstimatorChoice
    weight_bytes: int
    gradient_bytes: int  # gradient sums or sketches
    activation_bytes: int  # of the largest batch, an estimate
    trial_steps: int | None  # of every trial; `None` without trials
    copy_bytes: int  # the copy of the base weights that trials keep; 0 without trials
    generation_bytes: int  # cache and logits while completions are sampled; 0 where none are
    process_bytes: int  # what the process holds beside tensors: the libraries
    disk_bytes: int  # largest size of the stored progress, removed when the run has ended
    # Forward and backward passes over the probes, from the speed of a matrix product;
    # decompositions and sampling come on top.
    probe_seconds: float
    free_bytes: int  # on the device, now
    budget_unit: str  # `module`, `parameter` or `byte`
    budget_limit: int  # how many of them the budget allows in full

    @property
    def peak_bytes(self) -> int:
        """Predicted peak of tensors on the device of the model, in sampling or in probing."""
        probing = self.gradient_bytes + self.activation_bytes + self.copy_bytes
        return self.weight_bytes + max(probing, self.generation_bytes)


def forecast(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: ExampleSet | RolloutSet,
    settings: RankSettings,
    device: torch.device,
) -> Forecast:
    """Say what a run would do."""
    modules, budget_unit, budget_limit = _modules(model, settings)
    chosen = candidates_of(modules)
    decided, notes = with_movement(model, chosen, settings)
    sampled = settings.objective.samples_rollouts
    if isinstance(examples, ExampleSet) and sampled:
        examples = _longest_rollouts(model, tokenizer, examples, settings.objective)
    probes, settings, few = encode_probes(model, tokenizer, examples, settings, decided)
    dtype = planned_dtype(model.config, settings.model)
    generation_bytes = 0
    if sampled:
        # Keys and values of a batch of completions, and its logits in float32.
        config = model.config.get_text_config()
        heads = int(getattr(config, "num_attention_heads", None) or 1)
        width = getattr(config, "head_dim", None) or int(config.hidden_size) // heads
        held = int(getattr(config, "num_key_value_heads", None) or heads)
        longest = max(len(item.input_ids) for item in probes.sequences)
        cache = 2 * int(config.num_hidden_layers) * held * int(width) * longest * dtype.itemsize
        logits = 2 * embedding_rows(model) * torch.float32.itemsize
        generation_bytes = settings.objective.generate_batch * (cache + logits)
    weight_bytes = planned_weight_bytes(model, settings.model)
    choice = choose_estimator(
        model,
        chosen,
        probes,
        settings,
        device=device,
        reserved_bytes=weight_bytes,
        itemsize=dtype.itemsize,
        packed=settings.model.load_in is not None or settings.model.shard,
    )
    on_host = settings.capture.sums_on_host(device.type)
    kept = choice.needs.on_device(choice.estimator, sums_on_host=on_host)
    gradient_bytes = kept - choice.needs.activations
    weights = sum(item.n_weights for item in chosen)
    return Forecast(
        modules=modules,
        settings=settings,
        notes=(*notes, *few, *probes.summary.notes),
        probes=probes,
        choice=choice,
        weight_bytes=weight_bytes,
        gradient_bytes=gradient_bytes,
        activation_bytes=choice.needs.activations,
        trial_steps=trial_steps(probes, settings.capture),
        copy_bytes=dtype.itemsize * weights if settings.capture.movement == "trial" else 0,
        generation_bytes=generation_bytes,
        process_bytes=psutil.Process().memory_info().rss,
        disk_bytes=choice.needs.sums(choice.estimator),
        probe_seconds=_FLOPS_PER_WEIGHT
        * probes.summary.total_tokens
        * sum(item.n_params // item.matrices for item in chosen)
        / _flops_per_second(model, dtype, device),
        free_bytes=choice.free_bytes,
        budget_unit=budget_unit,
        budget_limit=budget_limit,
    )


def _modules(
    model: PreTrainedModel, settings: RankSettings
) -> tuple[tuple[Candidate, ...], str, int]:
    """Every module, the unit of the budget, one of it, and how many it allows."""
    identity = identify(model, settings.model.model, None, weights_hash="")
    modules = modules_to_plan(model, identity, settings)
    budget = parse_budget(settings.plan.budget)
    limit = budget.limit([item.n_params for item in candidates_of(modules)])
    return modules, budget.unit.removesuffix("s"), limit


def _longest_rollouts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: ExampleSet,
    settings: ObjectiveSettings,
) -> RolloutSet:
    """Stand-ins for completions, as long as they may become; all differ, half of them right."""
    with RewardProcess.of(settings) as rewards:
        prompts, notes = prompts_of(examples, tokenizer, model, rewards)
    context, pad = context_length(model), pad_token_id(tokenizer, model)
    # Equal completions would be run once: their last tokens differ, as far as there are tokens.
    lasts = [number % embedding_rows(model) for number in range(settings.generations)]
    groups = []
    for prompt in prompts:
        written = (pad,) * (room_for(len(prompt.ids), context, settings) - 1)
        rollouts = tuple(
            Rollout(prompt_ids=prompt.ids, completion_ids=(*written, last), reward=float(last % 2))
            for last in lasts
        )
        groups.append(RolloutGroup(name=str(prompt.number), rollouts=rollouts))
    note = (
        "Completions are sampled when the model runs: counted here as if each were as long as it "
        "may be, and as if every prompt carried a gradient."
    )
    return RolloutSet(source=examples.source, groups=tuple(groups), notes=(*notes, note))


def _flops_per_second(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> float:
    """Speed of a matrix product of about the size of the model's."""
    width = min(8192, int(getattr(model.config.get_text_config(), "hidden_size", 1024)))
    left = torch.ones(_TIMED_TOKENS, width, dtype=dtype, device=device)
    right = torch.ones(width, width, dtype=dtype, device=device)
    (left @ right).sum().item()  # the first product loads libraries
    products, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < _TIMED_SECONDS:
        (left @ right)[0, 0].item()
        products += 1
    return 2.0 * products * _TIMED_TOKENS * width**2 / passed


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightForecast:
    """What a run on the weights alone would do, known from the configuration."""

    modules: tuple[Candidate, ...]  # every module found, skipped ones too
    matrices: int  # to decompose
    largest_bytes: int  # the largest weight in the dtype of the configuration
    work_bytes: int  # memory of the largest decomposition, an estimate
    budget_unit: str  # `module`, `parameter` or `byte`
    budget_limit: int  # how many of them the budget allows in full


def forecast_weights(model: PreTrainedModel, settings: RankSettings) -> WeightForecast:
    """Say what a run on the weights alone would do."""
    modules, budget_unit, budget_limit = _modules(model, settings)
    chosen = candidates_of(modules)
    names = (settings.model.model, *settings.updates)
    local = all(name.startswith(BUILTIN_PREFIX) or looks_like_path(name) for name in names)
    if settings.updates and local:  # nothing is fetched from the hub
        base, _ = opened(settings)
        for each in settings.updates:
            open_trained(each, base, settings.model, chosen)
    largest = max(item.n_weights for item in chosen)
    return WeightForecast(
        modules=modules,
        matrices=sum(item.matrices for item in chosen),
        largest_bytes=planned_dtype(model.config, settings.model).itemsize * largest,
        work_bytes=max(decomposition_bytes(item) for item in chosen),
        budget_unit=budget_unit,
        budget_limit=budget_limit,
    )
