"""One forward pass over a batch: what every probe run and every trial asks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from transformers import PreTrainedModel

from hlscore.inputs.model import input_device
from hlscore.objectives.likelihood import IGNORED, token_log_probs
from hlscore.objectives.losses import LossInputs
from hlscore.probes.units import ProbeExample, ProbeSet, collate
from hlscore.settings import PaddingSide


def loss_scale(model: PreTrainedModel) -> float:
    """What a loss is multiplied with before the backward pass, and its gradients divided by."""
    # Mean-loss gradients of large models lie near the smallest number float16 can hold.
    return 1024.0 if model.dtype == torch.float16 else 1.0


def run_forward(
    model: PreTrainedModel,
    probes: ProbeSet,
    examples: Sequence[ProbeExample],
    *,
    padding_side: PaddingSide,
    temperature: float | None = None,
) -> LossInputs:
    """Run examples forward, padded to one batch.

    Args:
        temperature: Sampling temperature, which logits are divided by; `None` for that of the
            probes.
    """
    batch = collate(
        examples,
        pad_token_id=probes.pad_token_id,
        padding_side=padding_side,
        device=input_device(model),
    )
    # Right-padded tokens stand at their own positions anyway.
    inputs: dict[str, Any] = {}
    if padding_side == "left" and "position_ids" in signature(model.forward).parameters:
        inputs["position_ids"] = batch.position_ids
    logits = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **inputs
    ).logits
    labels = batch.labels.to(logits.device)
    log_probs = token_log_probs(
        logits, labels, temperature=probes.temperature if temperature is None else temperature
    )
    return LossInputs(
        log_probs=log_probs,
        counted=labels[:, 1:] != IGNORED,
        old_log_probs=batch.old_log_probs.to(log_probs),
        coefficients=batch.coefficients,
    )
