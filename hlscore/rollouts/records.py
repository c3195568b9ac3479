"""Completions with rewards, grouped by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Prompt = str | Sequence[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One completion of a prompt; texts are empty where only ids are known."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    completion: Prompt
    completion_ids: tuple[int, ...]  # with the end token, where there is one
    reward: float | None  # `None` where it could not be judged
    truncated: bool  # whether it was cut short at the limit of its length
    # Nats of its tokens under the policy that sampled it, NaN where not known; empty when none are.
    log_probs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The completions of one prompt, under a name of their own."""

    name: str
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSet:
    """All completions of a run."""

    source: str
    groups: tuple[RolloutGroup, ...]  # one per prompt
    temperature: float | None = None  # of sampling; `None` where not known
    notes: tuple[str, ...] = ()
    # What it took to sample and judge them, all starts of a resumed run together; 0 of a file.
    seconds: float = field(default=0.0, compare=False)
