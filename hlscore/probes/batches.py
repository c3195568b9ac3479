"""Padded batches of probe examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from hlscore.objectives.likelihood import IGNORED
from hlscore.probes.units import ProbeExample
from hlscore.settings import PaddingSide

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One padded batch, int64 [examples, length] where nothing else is said."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor  # 1 on tokens, 0 on padding
    position_ids: torch.Tensor  # place of each token in its example
    labels: torch.Tensor  # token ids where loss is counted, -100 elsewhere
    # What the loss of each sequence is multiplied by, float32 [examples], on the host.
    coefficients: torch.Tensor
    # Nats of the counted tokens under the policy that sampled them, NaN where not known, float32
    # [examples, length - 1]; place t belongs to token t + 1.
    old_log_probs: torch.Tensor


def by_length(group: Sequence[ProbeExample]) -> list[ProbeExample]:
    """Order examples so that those of like length come together, whatever order they are in."""
    return sorted(group, key=lambda item: (len(item.input_ids), item.input_ids))


def cut(examples: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Cut examples or units into parts of at most `size`."""
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def collate(
    examples: Sequence[ProbeExample],
    *,
    pad_token_id: int,
    padding_side: PaddingSide,
    device: torch.device,
) -> Batch:
    """Pad examples to one length."""
    length = max(len(item.input_ids) for item in examples)
    shape = (len(examples), length)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    old = torch.full(shape, float("nan"))
    for row, item in enumerate(examples):
        size = len(item.input_ids)
        places = slice(0, size) if padding_side == "right" else slice(length - size, length)
        ids = torch.tensor(item.input_ids, dtype=torch.int64)
        input_ids[row, places] = ids
        labels[row, places] = torch.where(torch.tensor(item.counted), ids, IGNORED)
        mask[row, places] = 1
        if item.old_log_probs:
            old[row, labels[row] != IGNORED] = torch.tensor(item.old_log_probs)
    position_ids = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    return Batch(
        input_ids=input_ids.to(device),
        attention_mask=mask.to(device),
        position_ids=position_ids.to(device),
        labels=labels.to(device),
        coefficients=torch.tensor([item.coefficient for item in examples]),
        old_log_probs=old[:, 1:].to(device),
    )
