"""The probe run: forward and backward over every batch of both halves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hlscore.errors import CaptureError
from hlscore.gradients.capture import GradientCapture
from hlscore.gradients.exact import ExactGradients
from hlscore.inputs.batches import Batch, batches
from hlscore.inputs.modules import decoder_blocks
from hlscore.inputs.probes import ProbeSet
from hlscore.objectives.sft import sft_loss
from hlscore.settings import CaptureSettings

# Mean-loss gradients of large models lie near the smallest number float16 can hold.
FLOAT16_LOSS_SCALE = 1024.0

OnTokens = Callable[[int], None]


def run_probes(
    model: PreTrainedModel,
    probes: ProbeSet,
    parameters: Mapping[str, nn.Parameter],
    gradients: ExactGradients,
    settings: CaptureSettings,
    on_tokens: OnTokens,
) -> float:
    """Run every probe batch forward and backward, and accumulate the gradients.

    Args:
        model: The model; comes back as it was.
        probes: Both halves of the probe examples.
        parameters: Weight parameter of each module, by module name.
        gradients: Receives each gradient.
        settings: Batch size, padding, checkpointing.
        on_tokens: Called after each batch with its tokens.

    Returns:
        Mean loss over the counted tokens of the whole set, in nats.

    Raises:
        CaptureError: A loss or gradient is NaN or infinite, or no gradient arrived.
    """
    device = model.get_input_embeddings().weight.device
    total, counted, number = 0.0, 0, 0
    blocks = _checkpointed_blocks(model) if settings.checkpointing else ()
    # Right-padded tokens stand at their own places anyway; the model's own default is safest.
    sends_positions = (
        settings.padding_side == "left" and "position_ids" in signature(model.forward).parameters
    )
    with (
        torch.enable_grad(),
        GradientCapture(model, parameters, gradients.add, blocks=blocks),
    ):
        for half, groups in enumerate(probes.halves):
            for group in groups:
                for batch in batches(
                    group,
                    batch_size=settings.batch_size,
                    pad_token_id=probes.pad_token_id,
                    padding_side=settings.padding_side,
                    device=torch.device(device),
                ):
                    number += 1
                    loss, tokens = _run_batch(
                        model, batch, gradients, half, number, sends_positions
                    )
                    total, counted = total + loss, counted + tokens
                    on_tokens(batch.tokens)
                gradients.end_group()
    return total / counted


def _run_batch(
    model: PreTrainedModel,
    batch: Batch,
    gradients: ExactGradients,
    half: int,
    number: int,
    sends_positions: bool,
) -> tuple[float, int]:
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if sends_positions:
        inputs["position_ids"] = batch.position_ids
    logits = model(**inputs, use_cache=False).logits
    loss, tokens = sft_loss(logits, batch.labels)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise CaptureError(
            f"The loss of probe batch {number} is {value}.", hint=_overflow_hint(model)
        )
    scale = FLOAT16_LOSS_SCALE if logits.dtype == torch.float16 else 1.0
    gradients.begin_batch(half, tokens / scale)
    if not loss.requires_grad:
        raise CaptureError("The loss does not depend on any candidate module.")
    (loss * (scale / tokens)).backward()  # type: ignore[no-untyped-call]
    bad = gradients.take_bad()
    if bad is not None:
        raise CaptureError(
            f"The gradient of '{bad}' in probe batch {number} holds NaN or infinity.",
            hint=_overflow_hint(model),
        )
    return value, tokens


def _overflow_hint(model: PreTrainedModel) -> str:
    if model.dtype == torch.float16:
        return "float16 overflows easily: use --dtype bfloat16 or float32."
    return "Check the checkpoint for broken weights, and the probe data for odd examples."


def _checkpointed_blocks(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    if not model.supports_gradient_checkpointing:
        return ()
    return tuple(model.get_submodule(name) for name in decoder_blocks(model))
