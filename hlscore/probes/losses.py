"""Losses of examples under a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hlscore.inputs.examples import cut
from hlscore.objectives.likelihood import token_log_probs
from hlscore.probes.units import ProbeExample, by_length, collate


def counted_tokens(examples: Sequence[ProbeExample]) -> int:
    """Tokens of all examples that count in the loss."""
    return sum(item.counted_tokens for item in examples)


@torch.no_grad()
def example_sums(
    model: torch.nn.Module, examples: Sequence[ProbeExample], pad_token_id: int, *, batch_size: int
) -> list[float]:
    """Loss of each example, nats summed over its counted tokens."""
    device = next(model.parameters()).device
    found: dict[ProbeExample, float] = {}
    for part in cut(by_length(examples), batch_size):
        batch = collate(part, pad_token_id=pad_token_id, padding_side="right", device=device)
        logits = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask,
            position_ids=batch.position_ids, use_cache=False,
        ).logits  # fmt: skip
        sums = -token_log_probs(logits, batch.labels).sum(dim=1)
        found |= dict(zip(part, sums.tolist(), strict=True))
    return [found[item] for item in examples]
