"""What a run would do, told before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.flow.probed import encode_probes
from hlscore.gradients.estimator import Choice, choose_estimator, with_movement
from hlscore.inputs.formats import ExampleSet
from hlscore.inputs.model import planned_dtype, planned_weight_bytes
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.planning.budget import parse_budget
from hlscore.probes.units import ProbeSet
from hlscore.records import Candidate
from hlscore.rollouts.prompts import longest_rollouts
from hlscore.rollouts.records import RolloutSet
from hlscore.rollouts.sampling import judgeable_prompts, rewards_of
from hlscore.settings import RankSettings
from hlscore.weights.singular_values import decomposition_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run would do, known before any weight is loaded.

    Attributes:
        modules: Every module found, skipped ones too.
        probes: The probe examples.
        choice: How gradients would be captured, and why.
        weight_bytes: Memory of the weights.
        gradient_bytes: Memory of the gradient sums or sketches.
        activation_bytes: Memory of the activations of the largest batch, an estimate.
        free_bytes: Memory that is free on the device now.
        budget_unit: `module` or `parameter`.
        budget_limit: How many of them the budget allows in full.
    """

    modules: tuple[Candidate, ...]
    probes: ProbeSet
    choice: Choice
    weight_bytes: int
    gradient_bytes: int
    activation_bytes: int
    free_bytes: int
    budget_unit: str
    budget_limit: int

    @property
    def peak_bytes(self) -> int:
        """Predicted peak on the device of the model."""
        return self.weight_bytes + self.gradient_bytes + self.activation_bytes


def forecast(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: ExampleSet | RolloutSet,
    settings: RankSettings,
    device: torch.device,
) -> Forecast:
    """Say what a run would do.

    Args:
        model: The model, on the meta device.
        tokenizer: Its tokenizer.
        examples: The probe examples.
        settings: Settings of the run.
        device: Where the model would go.

    Returns:
        The forecast.
    """
    modules = find_modules(model, settings.candidates)
    chosen = candidates_of(modules)
    settings = with_movement(model, chosen, settings)
    if isinstance(examples, ExampleSet) and settings.objective.samples_rollouts:
        with rewards_of(settings.objective, {}) as rewards:
            prompts, notes = judgeable_prompts(examples, tokenizer, model, rewards)
        examples = longest_rollouts(
            prompts, tokenizer, model, settings.objective, source=examples.source, notes=notes
        )
    probes = encode_probes(model, tokenizer, examples, settings)
    budget = parse_budget(settings.plan.budget)
    weight_bytes = planned_weight_bytes(model, settings.model)
    choice = choose_estimator(
        model,
        chosen,
        probes,
        settings,
        device=device,
        reserved_bytes=weight_bytes,
        itemsize=planned_dtype(model, settings.model).itemsize,
        packed=settings.model.load_in is not None,
    )
    kept = choice.needs.on_device(choice.estimator, settings.capture.accumulate_on)
    return Forecast(
        modules=modules,
        probes=probes,
        choice=choice,
        weight_bytes=weight_bytes,
        gradient_bytes=kept - choice.needs.activations,
        activation_bytes=choice.needs.activations,
        free_bytes=choice.free_bytes,
        budget_unit=budget.unit.removesuffix("s"),
        budget_limit=budget.limit([item.n_params for item in chosen]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightForecast:
    """What a run on the weights alone would do, known from the configuration.

    Attributes:
        modules: Every module found, skipped ones too.
        matrices: Matrices to decompose.
        largest_bytes: Memory of the largest weight in the dtype of the configuration.
        work_bytes: Memory of the largest decomposition, an estimate.
        budget_unit: `module`, `parameter` or `byte`.
        budget_limit: How many of them the budget allows in full.
    """

    modules: tuple[Candidate, ...]
    matrices: int
    largest_bytes: int
    work_bytes: int
    budget_unit: str
    budget_limit: int


def forecast_weights(model: PreTrainedModel, settings: RankSettings) -> WeightForecast:
    """Say what a run on the weights alone would do.

    Args:
        model: The model, on the meta device.
        settings: Settings of the run.

    Returns:
        The forecast.
    """
    modules = find_modules(model, settings.candidates)
    chosen = candidates_of(modules)
    budget = parse_budget(settings.plan.budget)
    itemsize = planned_dtype(model, settings.model).itemsize
    return WeightForecast(
        modules=modules,
        matrices=sum(item.matrices for item in chosen),
        largest_bytes=itemsize
        * max(item.matrices * item.out_features * item.in_features for item in chosen),
        work_bytes=max(decomposition_bytes(item) for item in chosen),
        budget_unit=budget.unit.removesuffix("s"),
        budget_limit=budget.limit([item.n_params for item in chosen]),
    )
