"""What is known of the probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LossTokens = Literal["", "all", "completion", "assistant"]
LOSS_ON: dict[LossTokens, str] = {
    "all": "all tokens",
    "completion": "completions",
    "assistant": "the assistant's tokens",
}
"""What the places of the loss are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSummary:
    """What the completions of reinforcement learning were like.

    Attributes:
        prompts: Prompts, each with a group of completions.
        completions: Completions of all prompts.
        silent: Prompts whose rewards are all equal: they carry no gradient.
        carrying: Prompts whose completions carry one.
        unjudged: Completions without a reward.
        truncated: Completions that were cut short at the limit of their length.
        empty: Completions without a token.
        mean_reward: Mean of the rewards there are; `None` where there is none.
    """

    prompts: int
    completions: int
    silent: int
    carrying: int
    unjudged: int
    truncated: int
    empty: int
    mean_reward: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSummary:
    """What the gradients come from.

    Attributes:
        source: Name of the data as given, or of the built-in probes.
        format: Data format found, such as `prompt_completion`.
        objective: The loss that was probed: `sft`, `dpo`, `grpo`, or `none`.
        loss_type: Its variant; empty for sft.
        loss_on: Which tokens carry loss: `all`, those of the `completion`, or those that the chat
            template marks as the `assistant`'s; empty but for sft.
        hash: SHA-256 over the token ids, loss masks and weights, independent of their order.
        examples: Examples, pairs or prompts used.
        groups: Bootstrap groups over both halves.
        counted_tokens: Tokens that carry loss.
        total_tokens: All tokens that are run, padding excluded.
        truncated: Examples cut at the maximum length.
        dropped: Examples left out because no token of theirs carries loss.
        mean_loss: Mean negative log-likelihood over the counted tokens, in nats; `None` before
            the run. For sft that is the loss.
        rollouts: What the completions were like; `None` but for grpo.
        notes: Remarks for the reader.
    """

    source: str
    format: str
    objective: Literal["sft", "dpo", "grpo", "none"] = "sft"
    loss_type: str = ""
    loss_on: LossTokens = ""
    hash: str = ""
    examples: int
    groups: int = 0
    counted_tokens: int = 0
    total_tokens: int = 0
    truncated: int
    dropped: int
    mean_loss: float | None = None
    rollouts: RolloutSummary | None = None
    notes: tuple[str, ...] = ()


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
"""What is said of a run that read the weights alone."""
