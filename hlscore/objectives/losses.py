"""The loss of a run: one sum over a batch, whatever the objective."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hlscore.objectives.policy import clipped_loss
from hlscore.settings import ObjectiveSettings

# log_probs, coefficients, counted, old_log_probs; see `clipped_loss`.
ProbeLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def probe_loss(settings: ObjectiveSettings) -> ProbeLoss:
    """The loss of an objective, a scalar.

    It takes log-probabilities [examples, length - 1], coefficients [examples], the mask of counted
    tokens and old log-probabilities [examples, length - 1].
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


def likelihood_loss(log_probs: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Weigh the negative log-likelihood of sequences, and sum.

    With all coefficients 1 this is cross-entropy: divided by the counted tokens of the whole
    probe set, its gradient is that of the mean loss whatever the batches are. With the slopes of
    a pairwise loss as coefficients, its gradient is that of the pairwise loss (see
    `preference`).

    Args:
        log_probs: Nats, float [examples, length - 1], 0 where nothing is counted.
        coefficients: One per sequence, float [examples].
    """
    return -(log_probs.sum(-1) * coefficients).sum()
