"""Supervised fine-tuning: next-token cross-entropy on the counted tokens."""

from __future__ import annotations

import torch


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
