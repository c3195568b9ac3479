"""Supervised fine-tuning: next-token cross-entropy on the counted tokens."""

from __future__ import annotations

import torch
from torch.nn import functional


def sft_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Sum the negative log-likelihood of the counted tokens.

    Args:
        logits: Any floating dtype, [examples, length, vocabulary]; place t predicts t + 1.
        labels: Token ids, -100 where nothing is counted, int64 [examples, length].

    Returns:
        The sum in nats, a float32 (float64 for float64 logits) scalar with a graph, and the
        number of counted tokens. Dividing by the count of the whole probe set gives its mean
        loss whatever the batches are.
    """
    targets = labels[:, 1:]
    places = targets != -100
    counted = logits[:, :-1][places]
    if counted.dtype in (torch.float16, torch.bfloat16):
        counted = counted.float()
    return functional.cross_entropy(counted, targets[places], reduction="sum"), counted.shape[0]
