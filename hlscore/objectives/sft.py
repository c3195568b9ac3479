"""Supervised fine-tuning: next-token cross-entropy on the counted tokens."""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

IGNORED = -100
# Logits above this many numbers are turned to float32 a part at a time.
CHUNK_NUMBERS = 2**26


def sft_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Sum the negative log-likelihood of the counted tokens.

    Large logits are never held in float32 as a whole: each part is turned to float32 in the
    forward pass, and again in the backward pass.

    Args:
        logits: Any floating dtype, [examples, length, vocabulary]; place t predicts t + 1.
        labels: Token ids, -100 where nothing is counted, int64 [examples, length].

    Returns:
        The sum in nats, a float32 (float64 for float64 logits) scalar with a graph, and the
        number of counted tokens. Dividing by the count of the whole probe set gives its mean
        loss whatever the batches are.
    """
    targets = labels[:, 1:]
    places = targets != IGNORED
    tokens = int(places.sum())
    if tokens * logits.shape[-1] <= CHUNK_NUMBERS:
        return _summed_loss(logits[:, :-1][places], targets[places]), tokens
    # Whole rows are split, not picked: the gradient of a pick is as large as all logits.
    following = functional.pad(targets, (0, 1), value=IGNORED).reshape(-1)
    rows = max(1, CHUNK_NUMBERS // logits.shape[-1])
    parts = [
        checkpoint(_summed_loss, part, wanted, use_reentrant=False, preserve_rng_state=False)
        for part, wanted in zip(
            torch.split(logits.flatten(0, 1), rows), torch.split(following, rows), strict=True
        )
        if bool((wanted != IGNORED).any())
    ]
    return torch.stack(parts).sum(), tokens


def _summed_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
