"""Completions with rewards, grouped by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Prompt = str | Sequence[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One completion of a prompt.

    Attributes:
        prompt: Text or messages; empty where only ids are known.
        completion: Text or messages; empty where only ids are known.
        completion_ids: Token ids, the end token too where there is one.
        reward: `None` where it could not be judged.
        truncated: Whether it was cut short at the limit of its length.
        log_probs: Nats of its tokens under the policy that sampled it, NaN where not known;
            empty when none are.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    completion: Prompt
    completion_ids: tuple[int, ...]
    reward: float | None
    truncated: bool
    log_probs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The completions of one prompt, under a name of their own."""

    name: str
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSet:
    """All completions of a run.

    Attributes:
        source: Where they come from, for messages and artifacts.
        groups: One per prompt.
        temperature: Sampling temperature; `None` where not known.
        seconds: What it took to sample and judge them, all starts of a resumed run together; 0
            where they come from a file.
    """

    source: str
    groups: tuple[RolloutGroup, ...]
    temperature: float | None = None
    notes: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)
