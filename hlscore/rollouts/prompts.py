"""Prompts that the model is to complete."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import DataError, first_line
from hlscore.inputs.formats import ExampleSet, Row
from hlscore.inputs.tokens import context_length, embedding_rows, pad_token_id, prompt_ids
from hlscore.rollouts.records import Rollout, RolloutGroup, RolloutSet
from hlscore.settings import ObjectiveSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt to continue.

    Attributes:
        number: Its place in the data.
        row: All columns of its example.
        ids: Its token ids.
    """

    number: int
    row: Row
    ids: tuple[int, ...]


def encode_prompts(
    examples: ExampleSet, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """Tokenize prompts, each once.

    Returns:
        The prompts that leave room for a completion, and notes about the others.
    """
    context = context_length(model)
    found: dict[tuple[int, ...], Prompt] = {}
    empty = long = 0
    for number, row in enumerate(examples.rows):
        try:
            ids = tuple(prompt_ids(row["prompt"], tokenizer))
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"Example {number} of '{examples.source}' cannot be tokenized: {first_line(error)}",
                hint="Repair that example, or check the chat template of the tokenizer.",
            ) from error
        empty += not ids
        long += context is not None and len(ids) >= context
        if ids and (context is None or len(ids) < context):
            found.setdefault(ids, Prompt(number=number, row=row, ids=ids))
    notes = [*examples.notes]
    if long:
        notes.append(f"{long} prompts were left out: they fill the context of {context} tokens.")
    if empty:
        notes.append(f"{empty} prompts were left out: they are empty.")
    copies = len(examples.rows) - long - empty - len(found)
    if copies:
        notes.append(f"{copies} prompts were left out: they are copies of others.")
    if not found:
        why = f"each fills the context of {context} tokens" if long else "all are empty"
        raise DataError(f"No prompt of '{examples.source}' can be continued: {why}.")
    return tuple(found.values()), tuple(notes)


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


def longest_rollouts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    settings: ObjectiveSettings,
    *,
    source: str,
    notes: tuple[str, ...] = (),
) -> RolloutSet:
    """Stand-ins for rollouts that are not sampled yet, as long as they may become.

    Args:
        model: The model; may be on the meta device.

    Returns:
        Completions that all differ, every other one of them right.
    """
    context, pad = context_length(model), pad_token_id(tokenizer, model)
    # Equal completions would be run once: their last tokens differ, as far as there are tokens.
    lasts = [number % embedding_rows(model) for number in range(settings.generations)]
    groups = []
    for prompt in prompts:
        room = room_for(len(prompt.ids), context, settings)
        rollouts = tuple(
            Rollout(
                prompt="",
                prompt_ids=prompt.ids,
                completion="",
                completion_ids=(*(pad,) * (room - 1), last),
                reward=float(last % 2),
                truncated=False,
            )
            for last in lasts
        )
        groups.append(RolloutGroup(name=str(prompt.number), rollouts=rollouts))
    note = (
        "Completions are sampled when the model runs: counted here as if each were as long as it "
        "may be, and as if every prompt carried a gradient."
    )
    return RolloutSet(source=source, groups=tuple(groups), notes=(*notes, note))
