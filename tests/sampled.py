"""Completions that tests sample, and the slow way to do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.flow import Silent
from hlscore.inputs.examples import BUILTIN_KNOWN, builtin_rows
from hlscore.inputs.formats import example_set
from hlscore.processes import Processes
from hlscore.rollouts.records import Rollout, RolloutJournal, RolloutSet
from hlscore.rollouts.rewards import RewardProcess
from hlscore.rollouts.sampling import sample_completions
from hlscore.settings import DataSettings, ObjectiveSettings

ROWS = builtin_rows(BUILTIN_KNOWN)[:5]
END = 0  # of the built-in model
BYTE_END = 258  # of the byte tokenizer

Judge = Callable[..., list[float | None]]


def zeros(completions: Sequence[Any], **_: Any) -> list[float | None]:
    return [0.0] * len(completions)


def lengths(completions: Sequence[Any], **_: Any) -> list[float | None]:
    return [float(len(text)) for text in completions]


def settings(**options: Any) -> ObjectiveSettings:
    chosen = {"generations": 4, "max_new_tokens": 12, "rewards": ("math",)} | options
    return ObjectiveSettings(objective="grpo", **chosen)


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Any] = ROWS,
    *,
    judge: Judge | list[Any] = zeros,
    seed: int = 0,
    journal: RolloutJournal | None = None,
    resume: bool = False,
    progress: Silent | None = None,
    processes: Processes = Processes(),  # noqa: B008 - frozen
    **options: Any,
) -> RolloutSet:
    examples = example_set(rows, "rows", DataSettings(), ("prompt",))
    rewards = RewardProcess(judge if isinstance(judge, list) else [judge])
    return sample_completions(
        model, tokenizer, examples, settings(**options), rewards,
        progress or Silent(), seed=seed, processes=processes, journal=journal, resume=resume,
    )  # fmt: skip


def everything(found: RolloutSet) -> list[Rollout]:
    return [item for group in found.groups for item in group.rollouts]


def drawn(found: RolloutSet) -> list[tuple[int, ...]]:
    return [item.completion_ids for item in everything(found)]


def greedy(
    model: PreTrainedModel, prompt: Sequence[int], count: int, ends: Sequence[int]
) -> tuple[int, ...]:
    """The slow way: no cache, no padding, one sequence."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + count:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    return tuple(ids[len(prompt) :])
