"""One forward pass over a batch: what every probe run and every trial asks of a model."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from transformers import PreTrainedModel

from hlscore.objectives.likelihood import IGNORED, token_log_probs
from hlscore.probes.batches import Batch


def sends_positions(model: PreTrainedModel, padding_side: str) -> bool:
    """Whether positions go to the model: right-padded tokens stand at their own places anyway."""
    return padding_side == "left" and "position_ids" in signature(model.forward).parameters


def counted_log_probs(
    model: PreTrainedModel, batch: Batch, *, positions: bool, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a batch forward.

    Returns:
        Log-probabilities of the counted tokens in nats, [examples, length - 1], 0 elsewhere, with
        the graph of the pass; and which tokens count, bool of the same shape.
    """
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
    }
    if positions:
        inputs["position_ids"] = batch.position_ids
    logits = model(**inputs, use_cache=False).logits
    labels = batch.labels.to(logits.device)
    return token_log_probs(logits, labels, temperature=temperature), labels[:, 1:] != IGNORED
