"""What is known of the probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LossTokens = Literal["", "all", "completion", "assistant"]
# What the tokens that carry loss are called.
LOSS_ON: dict[LossTokens, str] = {
    "all": "all tokens",
    "completion": "completions",
    "assistant": "the assistant's tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSummary:
    """What the completions of reinforcement learning were like."""

    prompts: int  # each with a group of completions
    completions: int
    silent: int  # prompts whose rewards are all equal: they carry no gradient
    carrying: int  # prompts whose completions carry one
    unjudged: int  # completions without a reward
    truncated: int  # completions that were cut short at the limit of their length
    empty: int  # completions without a token
    mean_reward: float | None  # of the rewards there are


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSummary:
    """What the gradients come from."""

    source: str  # name of the data as given, or of the built-in probes
    format: str  # data format found, such as `prompt_completion`
    objective: Literal["sft", "dpo", "grpo", "none"] = "sft"  # the loss that was probed
    loss_type: str = ""  # its variant; empty for sft
    # Which tokens carry loss: `all`, those of the `completion`, or those that the chat template
    # marks as the `assistant`'s; empty but for sft.
    loss_on: LossTokens = ""
    hash: str = ""  # SHA-256 over the token ids, loss masks and weights, independent of their order
    examples: int  # examples, pairs or prompts used
    groups: int = 0  # bootstrap groups over both halves
    counted_tokens: int = 0  # tokens that carry loss
    total_tokens: int = 0  # all tokens that are run, padding excluded
    truncated: int  # examples cut at the maximum length
    dropped: int  # examples left out because no token of theirs carries loss
    # Mean negative log-likelihood of the counted tokens, in nats; `None` before the run.
    mean_loss: float | None = None
    rollouts: RolloutSummary | None = None  # `None` but for grpo
    notes: tuple[str, ...] = ()


# What is said of a run that read the weights alone.
NO_PROBES = ProbeSummary(
    source="none",
    format="none",
    objective="none",
    hash="none",
    examples=0,
    truncated=0,
    dropped=0,
    notes=("Nothing was probed: the scores come from the weights alone.",),
)
