"""The loss of a run: one sum over a batch, whatever the objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hlscore.objectives.policy import clipped_loss
from hlscore.settings import ObjectiveSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """What a forward pass gives to the loss of any objective."""

    # Of the counted tokens in nats, [examples, length - 1], 0 elsewhere, with the graph of the
    # pass; place t belongs to token t + 1.
    log_probs: torch.Tensor
    counted: torch.Tensor  # which tokens count, bool [examples, length - 1]
    old_log_probs: torch.Tensor  # of the policy that sampled them, NaN where not known
    coefficients: torch.Tensor  # factor of each sequence's loss, float32 [examples], on the host


def probe_loss(objective: ObjectiveSettings, given: LossInputs) -> torch.Tensor:
    """The loss of an objective, summed over a batch, a scalar.

    Unless it is a policy loss, it is the weighted negative log-likelihood of the sequences. With
    all coefficients 1 this is cross-entropy: divided by the counted tokens of the whole probe
    set, its gradient is that of the mean loss whatever the batches are. With the slopes of a
    pairwise loss as coefficients, its gradient is that of the pairwise loss (see `preference`).
    """
    log_probs, coefficients = given.log_probs, given.coefficients.to(given.log_probs)
    if objective.objective != "grpo":
        return -(log_probs.sum(-1) * coefficients).sum()
    low, high = objective.clip
    return clipped_loss(
        log_probs, coefficients, given.counted, given.old_log_probs,
        low=low, high=high, by_sequence=objective.loss_type_name == "gspo",
    )  # fmt: skip
