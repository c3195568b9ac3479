"""Rollouts of any engine, from rows of a file: token ids, groups, log-probabilities."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import DataError
from hlscore.inputs.examples import draw_rows
from hlscore.inputs.formats import ExampleSet, Row
from hlscore.inputs.tokens import (
    common_prefix,
    end_token_ids,
    naming_example,
    prompt_and_whole,
    prompt_ids,
    rendering,
    text_ids,
)
from hlscore.rollouts.records import Rollout, RolloutGroup, RolloutSet


def rollouts_from(
    examples: ExampleSet,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    samples: int,
    seed: int,
) -> RolloutSet:
    """Turn the rows of a file into rollouts.

    Rows belong together by their `group`, else by their prompt and `step`. A completion given as
    text ends in the end token, unless its row says that it is truncated (`truncated`, or a
    `finish_reason` of `length`).

    Args:
        samples: Groups to draw; 0 means all. They stay in the order in which they begin.
    """
    rows: dict[str, list[tuple[int, Row]]] = {}
    for index, row in enumerate(examples.rows):
        if "group" in row:
            name = str(row["group"])
        else:  # a trainer's log holds the completions of several policies, one per step
            prompt = (row.get("prompt_ids", row.get("prompt")), row.get("step"))
            name = hashlib.sha256(json.dumps(prompt, default=str).encode()).hexdigest()[:16]
        rows.setdefault(name, []).append((index, row))
    ends = end_token_ids(tokenizer, model)
    temperatures = {row.get("temperature", 1.0) for row in examples.rows}
    note = "The rows differ in temperature: the loss is computed at 1 (--temperature)."
    return RolloutSet(
        source=examples.source,
        temperature=float(min(temperatures)) if len(temperatures) == 1 else None,
        notes=(*examples.notes, note) if len(temperatures) > 1 else examples.notes,
        groups=tuple(
            RolloutGroup(
                name=name,
                rollouts=tuple(
                    _rollout(row, index, examples.source, tokenizer, ends)
                    for index, row in rows[name]
                ),
            )
            for name in draw_rows(list(rows), samples, seed)
        ),
    )


def _rollout(
    row: Row, index: int, source: str, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> Rollout:
    # Whether the row says that it was cut short; `None` where it says nothing.
    said: bool | None = None
    if "truncated" in row:
        said = bool(row["truncated"])
    elif "finish_reason" in row:
        said = row["finish_reason"] == "length"
    given = "completion_ids" in row
    with naming_example(source, index, way_out="give prompt_ids and completion_ids"):
        start = (
            row["prompt_ids"]
            if "prompt_ids" in row
            else prompt_ids(row["prompt"], tokenizer, **rendering(row))
        )
        ids = (
            list(row["completion_ids"])
            if given
            else _completion_ids(row, tokenizer, ends, ended=not said)
        )
    log_probs = [math.nan if value is None else float(value) for value in row.get("logprobs", ())]
    if "logprobs" in row:
        if not given and len(log_probs) == len(ids) - 1:
            log_probs.append(math.nan)  # engines that leave the end token out of the text
        if len(log_probs) != len(ids):
            raise DataError(
                f"Example {index} of '{source}' has {len(log_probs)} log-probabilities for "
                f"{len(ids)} tokens of its completion.",
                hint="Give the completion_ids that the engine sampled beside its logprobs.",
            )
    # Text and messages were ended here; token ids end in an end token if they are complete.
    endless = given and bool(ids) and bool(ends) and ids[-1] not in ends
    return Rollout(
        prompt=row.get("prompt", ""),
        prompt_ids=tuple(start),
        completion=row.get("completion", ""),
        completion_ids=tuple(ids),
        reward=None if row["reward"] is None else float(row["reward"]),
        truncated=endless if said is None else said,
        log_probs=tuple(log_probs),
    )


def _completion_ids(
    row: Row, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], *, ended: bool
) -> list[int]:
    completion, options = row["completion"], rendering(row)
    if isinstance(completion, str):
        ids = text_ids(completion, tokenizer, special=False)
        if not ended or (ids and ids[-1] in ends):
            return ids
        end = tokenizer.eos_token_id
        if isinstance(row.get("prompt"), list):  # what the template puts at the end of a turn
            start, whole = prompt_and_whole(row["prompt"], "x", tokenizer, **options)
            turn = whole[common_prefix(start, whole) :]
            end = next((token for token in turn if token in ends), end)
        return [*ids, end] if isinstance(end, int) else ids
    start, whole = prompt_and_whole(row["prompt"], completion, tokenizer, **options)
    ids = whole[common_prefix(start, whole) :]
    # A template may put more behind the end of a turn than a model would ever write; a completion
    # that was cut short has no end either.
    stops = [place for place, token in enumerate(ids) if token in ends]
    return ids[: stops[0] + ended] if stops else ids
