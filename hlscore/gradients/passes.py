"""One forward pass over a batch: what every probe run and every trial asks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from transformers import PreTrainedModel

from hlscore.inputs.model import input_device
from hlscore.objectives.likelihood import token_log_probs
from hlscore.probes.batches import IGNORED, collate
from hlscore.probes.units import ProbeExample, ProbeSet
from hlscore.settings import PaddingSide

# Mean-loss gradients of large models lie near the smallest number float16 can hold.
FLOAT16_LOSS_SCALE = 1024.0


def loss_scale(model: PreTrainedModel) -> float:
    """What a loss is multiplied with before the backward pass, and its gradients divided by."""
    return FLOAT16_LOSS_SCALE if model.dtype == torch.float16 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """A batch after its forward pass.

    Attributes:
        log_probs: Of the counted tokens in nats, [examples, length - 1], 0 elsewhere, with the
            graph of the pass; place t belongs to token t + 1.
        counted: Which tokens count, bool [examples, length - 1].
        old_log_probs: Of the policy that sampled them, NaN where not known, like `log_probs`.
        coefficients: What the loss of each sequence is multiplied by, float32 [examples], on the
            host.
    """

    log_probs: torch.Tensor
    counted: torch.Tensor
    old_log_probs: torch.Tensor
    coefficients: torch.Tensor


class ForwardPass:
    """Runs examples forward, padded to one batch.

    Args:
        temperature: What logits are divided by; `None` for that of the probes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        probes: ProbeSet,
        padding_side: PaddingSide,
        *,
        temperature: float | None = None,
    ) -> None:
        self._model, self._padding_side = model, padding_side
        self._pad_token_id = probes.pad_token_id
        self._temperature = probes.temperature if temperature is None else temperature
        # Right-padded tokens stand at their own positions anyway.
        takes_positions = "position_ids" in signature(model.forward).parameters
        self._positions = padding_side == "left" and takes_positions

    def __call__(self, examples: Sequence[ProbeExample]) -> Passed:
        """Run one batch."""
        batch = collate(
            examples,
            pad_token_id=self._pad_token_id,
            padding_side=self._padding_side,
            device=input_device(self._model),
        )
        inputs: dict[str, Any] = {"position_ids": batch.position_ids} if self._positions else {}
        logits = self._model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,
            **inputs,
        ).logits
        labels = batch.labels.to(logits.device)
        log_probs = token_log_probs(logits, labels, temperature=self._temperature)
        return Passed(
            log_probs=log_probs,
            counted=labels[:, 1:] != IGNORED,
            old_log_probs=batch.old_log_probs.to(log_probs),
            coefficients=batch.coefficients,
        )
