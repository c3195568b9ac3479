"""Log-probabilities of the counted tokens, and the loss of any objective that is made of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hlscore.objectives.policy import clipped_loss
from hlscore.settings import ObjectiveSettings

IGNORED = -100
# Logits above this many numbers are turned to float32 a part at a time.
CHUNK_NUMBERS = 2**26


def token_log_probs(
    logits: torch.Tensor, labels: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Log-probability of each counted token, given those before it.

    Large logits are never held in float32 as a whole: each part is turned to float32 in the
    forward pass, and again in the backward pass.

    Args:
        logits: Any floating dtype, [examples, length, vocabulary]; place t predicts t + 1.
        labels: Token ids, -100 where nothing is counted, int64 [examples, length].
        temperature: What the logits are divided by first: that of sampling, for the policy
            losses of reinforcement learning.

    Returns:
        Nats, float32 (float64 for float64 logits) [examples, length - 1] with a graph; place t
        belongs to token t + 1 and is 0 where that token is not counted.
    """
    targets = labels[:, 1:]
    places = targets != IGNORED
    if int(places.sum()) * logits.shape[-1] <= CHUNK_NUMBERS:
        found = _log_probs(logits[:, :-1][places], targets[places], temperature)
        whole = torch.zeros(targets.shape, dtype=found.dtype, device=found.device)
        return whole.masked_scatter(places, found)
    # Whole rows are split, not picked: the gradient of a pick is as large as all logits.
    following = functional.pad(targets, (0, 1), value=IGNORED).reshape(-1)
    rows = max(1, CHUNK_NUMBERS // logits.shape[-1])
    parts = []
    for part, wanted in zip(
        torch.split(logits.flatten(0, 1), rows), torch.split(following, rows), strict=True
    ):
        if bool((wanted != IGNORED).any()):
            found = checkpoint(
                _log_probs, part, wanted, temperature, use_reentrant=False, preserve_rng_state=False
            )
        else:
            dtype = torch.float64 if part.dtype == torch.float64 else torch.float32
            found = torch.zeros(len(part), dtype=dtype, device=part.device)
        parts.append(found)
    return torch.cat(parts).view(labels.shape)[:, :-1]


def _log_probs(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    return -functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")


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
