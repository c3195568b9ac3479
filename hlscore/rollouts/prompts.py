"""Prompts that the model is to complete."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import DataError
from hlscore.inputs.examples import cut
from hlscore.inputs.formats import ExampleSet, Row
from hlscore.inputs.tokens import assistant, context_length, naming_example, prompt_ids
from hlscore.rollouts.reward_worker import NOT_COLUMNS, Completions
from hlscore.rollouts.rewards import RewardProcess
from hlscore.settings import ObjectiveSettings

_JUDGED_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt to continue: its place in the data, the columns of its example, its token ids."""

    number: int
    row: Row
    ids: tuple[int, ...]


def prompts_of(
    examples: ExampleSet,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    rewards: RewardProcess,
) -> tuple[list[Prompt], tuple[str, ...]]:
    """Tokenize prompts, each once.

    Returns:
        The prompts that leave room for a completion, and whose answers built-in verifiers can
        judge, and notes about the others.
    """
    context = context_length(model)
    found: dict[tuple[int, ...], Prompt] = {}
    empty = long = 0
    for number, row in enumerate(examples.rows):
        with naming_example(examples.source, number):
            ids = tuple(prompt_ids(row["prompt"], tokenizer))
        empty += not ids
        long += context is not None and len(ids) >= context
        if ids and (context is None or len(ids) < context):
            found.setdefault(ids, Prompt(number=number, row=row, ids=ids))
    if not found:
        why = f"each fills the context of {context} tokens" if long else "all are empty"
        raise DataError(f"No prompt of '{examples.source}' can be continued: {why}.")
    kept = prompts = list(found.values())
    if rewards.builtin:
        kept = []
        for part in cut(prompts, _JUDGED_AT_ONCE):
            judged = rewards.judge(completions_of(part, [""] * len(part), [[]] * len(part)))
            kept += [prompt for prompt, one in zip(part, judged, strict=True) if one is not None]
    if not kept:
        raise DataError(
            f"No prompt of '{examples.source}' has an answer that the reward can judge.",
            hint="Check the column of answers (--column answer=NAME), or use another --reward.",
        )
    reasons = {
        f"they fill the context of {context} tokens": long,
        "they are empty": empty,
        "they are copies of others": len(examples.rows) - long - empty - len(prompts),
        "the reward cannot judge their answers": len(prompts) - len(kept),
    }
    left_out = [f"{n} prompts were left out: {why}." for why, n in reasons.items() if n]
    return kept, (*examples.notes, *left_out)


def completions_of(
    prompts: Sequence[Prompt], texts: Sequence[str], ids: list[list[int]]
) -> Completions:
    """Completions of prompts for rewards, each in the form of its prompt: text, or a message."""
    given = [prompt.row["prompt"] for prompt in prompts]
    # Rows in memory need not have all columns.
    columns = dict.fromkeys(name for prompt in prompts for name in prompt.row)
    return Completions(
        prompts=given,
        completions=[
            text if isinstance(prompt, str) else [dict(assistant(text))]
            for prompt, text in zip(given, texts, strict=True)
        ],
        completion_ids=ids,
        columns={
            name: [prompt.row.get(name) for prompt in prompts]
            for name in columns
            if name not in NOT_COLUMNS
        },
    )


def room_for(prompt_tokens: int, context: int | None, settings: ObjectiveSettings) -> int:
    """Most tokens that a completion may have.

    Args:
        context: Tokens that the model reads at once; `None` where there is no limit.
    """
    room = settings.max_new_tokens
    return room if context is None else min(room, context - prompt_tokens)


def prompts_hash(examples: ExampleSet) -> str:
    """Hash of all columns, in order: rewards may read any of them."""
    rows = json.dumps([dict(row) for row in examples.rows], default=str, skipkeys=True)
    return f"sha256:{hashlib.sha256(rows.encode()).hexdigest()}"
