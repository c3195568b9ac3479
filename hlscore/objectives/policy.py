r"""The GRPO family: advantages within groups, clipped surrogates, and what they are divided by.

Names and normalizations are TRL's. What happens at the probed point, before the first step:

- Completions that the probed model sampled itself have ratios `p / p_old = 1`: no clip is
  active, and the surrogate `ratio * A` has the gradient `A * grad log p`.
- A KL penalty against the start of the training has the estimate `exp(d) - d - 1` per token with
  `d = log p_ref - log p`, whose gradient `(1 - exp(d)) * grad log p` is 0 at d = 0, whatever beta
  is: no reference model is needed.
- The sequence-level ratio of GSPO is the exponential of the mean log-ratio of its tokens; at
  ratio 1 its gradient is the mean of the token gradients: that of loss type `grpo`.

With log-probabilities of another sampling policy the ratios differ from 1 and are clipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

# What TRL adds to the standard deviation of a group's rewards.
EPSILON = 1e-4
_LARGEST_LOG_RATIO = 60.0


def group_advantages(
    groups: Sequence[Sequence[float | None]], *, scale: str = "group"
) -> list[list[float]]:
    """Advantages of completions over the mean of their group.

    Source: GRPO, https://arxiv.org/abs/2402.03300 (`group`); Dr. GRPO,
    https://arxiv.org/abs/2503.20783 (`none`); https://arxiv.org/abs/2508.08221 (`batch`).

    Args:
        groups: Rewards by group; `None` where a completion could not be judged, whose advantage is
            0. It is exactly 0 too where all rewards of a group are equal.
        scale: Divide by the standard deviation (of samples) of the `group`, of the whole `batch`,
            or by nothing (`none`).
    """
    overall = _deviation([reward for group in groups for reward in group if reward is not None])
    found = []
    for group in groups:
        known = [reward for reward in group if reward is not None]
        mean = math.fsum(known) / len(known) if known else 0.0
        by = {"group": _deviation(known), "batch": overall, "none": None}[scale]
        divisor = 1.0 if by is None else by + EPSILON
        silent = not has_signal(group)
        found.append(
            [0.0 if silent or reward is None else (reward - mean) / divisor for reward in group]
        )
    return found


def has_signal(group: Sequence[float | None]) -> bool:
    """Whether the rewards of a group differ: only then does it carry a gradient."""
    known = {reward for reward in group if reward is not None}
    return len(known) > 1


def _deviation(rewards: Sequence[float]) -> float:
    if len(rewards) < 2:
        return 0.0
    mean = math.fsum(rewards) / len(rewards)
    return math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))


def token_share(loss_type: str, tokens: int) -> float:
    """What each token of a completion counts in the sum of a loss type.

    `grpo` and `gspo` take the mean over a completion's tokens, `dapo` and `dr_grpo` their sum.
    """
    return 1 / max(tokens, 1) if loss_type in ("grpo", "gspo") else 1.0


def divisor_share(loss_type: str, tokens: int, max_tokens: int) -> int:
    """What a completion adds to the number that the sum of a loss type is divided by.

    Sources: GRPO, https://arxiv.org/abs/2402.03300 and GSPO, https://arxiv.org/abs/2507.18071
    (completions); DAPO, https://arxiv.org/abs/2503.14476 (tokens); Dr. GRPO,
    https://arxiv.org/abs/2503.20783 (completions times a constant length, `max_tokens`).
    """
    return {"grpo": 1, "gspo": 1, "dapo": tokens, "dr_grpo": max_tokens}[loss_type]


def clipped_loss(
    log_probs: torch.Tensor,
    coefficients: torch.Tensor,
    counted: torch.Tensor,
    old_log_probs: torch.Tensor,
    *,
    low: float,
    high: float,
    by_sequence: bool,
) -> torch.Tensor:
    """The clipped surrogate of policy gradients, weighed and summed.

    Sources: PPO, https://arxiv.org/abs/1707.06347 (per token); GSPO,
    https://arxiv.org/abs/2507.18071 (one ratio per sequence).

    Args:
        log_probs: Nats, float [examples, length - 1], 0 where nothing is counted.
        coefficients: Advantage times `token_share`, float [examples].
        counted: Which tokens count, bool [examples, length - 1].
        old_log_probs: Nats under the policy that sampled, float [examples, length - 1]; NaN where
            they are not known: there the ratio is 1.
        low: A ratio below `1 - low` is clipped.
        high: A ratio above `1 + high` is clipped.
        by_sequence: One ratio per sequence (GSPO) instead of one per token.
    """
    old = torch.where(torch.isnan(old_log_probs), log_probs.detach(), old_log_probs)
    log_ratios = (log_probs - old) * counted
    if by_sequence:
        tokens = counted.sum(-1, keepdim=True).clamp(min=1)
        log_ratios = (log_ratios.sum(-1, keepdim=True) / tokens).expand_as(log_probs)
    # Beyond this every ratio is absurd, and its gradient would be infinity times zero.
    ratios = torch.exp(log_ratios.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO))
    weights = coefficients[:, None]
    surrogate = torch.min(ratios * weights, ratios.clamp(1 - low, 1 + high) * weights)
    return -(surrogate * counted).sum()
