"""The loss of a run, as the probe run calls it: one sum over a batch, whatever the objective."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hlscore.objectives.policy import clipped_loss
from hlscore.objectives.sft import likelihood_loss
from hlscore.settings import ObjectiveSettings

# log_probs, coefficients, counted, old_log_probs; see `clipped_loss`.
ProbeLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def probe_loss(settings: ObjectiveSettings) -> ProbeLoss:
    """Choose the loss of an objective.

    Returns:
        A function of log-probabilities [examples, length - 1], coefficients [examples], the mask
        of counted tokens and old log-probabilities [examples, length - 1] that gives a scalar.
    """
    if settings.objective != "grpo":
        return lambda log_probs, coefficients, _counted, _old: likelihood_loss(
            log_probs, coefficients
        )
    low, high = settings.clip
    by_sequence = settings.loss_type_name == "gspo"
    return lambda log_probs, coefficients, counted, old: clipped_loss(
        log_probs, coefficients, counted, old, low=low, high=high, by_sequence=by_sequence
    )
