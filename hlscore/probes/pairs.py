"""Preference pairs: two sequences each, weighed by the slopes of the pairwise loss."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from hlscore.errors import DataError
from hlscore.inputs.formats import ExampleSet, Row
from hlscore.inputs.tokens import common_prefix, prompt_and_whole, rendering
from hlscore.objectives.preference import slopes
from hlscore.probes.encoding import Encoding, check_two, shortened
from hlscore.probes.sft import not_tokenized, sequence
from hlscore.probes.units import ProbeExample, ProbeSet, ProbeUnit
from hlscore.records import ProbeSummary
from hlscore.settings import DEFAULT_MAX_LENGTH, ObjectiveSettings


def encode_pairs(examples: ExampleSet, how: Encoding) -> ProbeSet:
    """Tokenize pairs; see `encode`."""
    objective, limit = how.objective, how.limit(DEFAULT_MAX_LENGTH)
    units, truncated, equal = [], 0, 0
    for index, row in enumerate(examples.rows):
        pair = _encode_row(examples, index, row, how.tokenizer)
        truncated += any(limit is not None and len(item.input_ids) > limit for item in pair)
        chosen, rejected = (shortened(item, limit) for item in pair)
        if chosen.input_ids == rejected.input_ids:
            # Else it was only cut where the two begin to differ.
            equal += pair[0].input_ids == pair[1].input_ids
        elif chosen.counted_tokens or rejected.counted_tokens:
            units.append(_weighted(chosen, rejected, objective))
    dropped = len(examples.rows) - len(units)
    if not units:
        raise _nothing_counts(examples, equal, truncated, limit)
    check_two(units, examples.source, "pair")
    return how.probe_set(
        units,
        ProbeSummary(
            source=examples.source,
            format=examples.format,
            objective="dpo",
            loss_type=objective.loss_type_name,
            examples=len(units),
            truncated=truncated,
            dropped=dropped,
            notes=(*examples.notes, *_notes(truncated, limit, equal, dropped - equal)),
        ),
    )


def _weighted(
    chosen: ProbeExample, rejected: ProbeExample, objective: ObjectiveSettings
) -> ProbeUnit:
    # As in TRL, lengths below 1 count as 1.
    first, second = (max(1, item.counted_tokens) for item in (chosen, rejected))
    weights = slopes(objective.loss_type_name, first, second, objective.beta_value)
    pair = zip((chosen, rejected), weights, strict=True)
    return ProbeUnit(
        tuple(
            # The likelihood loss has a minus of its own.
            ProbeExample(item.input_ids, item.counted, -slope)
            for item, slope in pair
            if item.counted_tokens and slope
        ),
        count=1,
        key=_content(chosen, rejected),
        pair=(chosen, rejected),
    )


def _content(chosen: ProbeExample, rejected: ProbeExample) -> str:
    """Hash of a pair, however a loss weighs its completions."""
    pair = b"".join(item.digest(0) for item in (chosen, rejected))
    return hashlib.sha256(pair).hexdigest()


def _encode_row(
    examples: ExampleSet, index: int, row: Row, tokenizer: PreTrainedTokenizerBase
) -> tuple[ProbeExample, ProbeExample]:
    try:
        prompt, chosen, rejected = _parts(row)
        options = rendering(row)
        start, whole_chosen = prompt_and_whole(prompt, chosen, tokenizer, **options)
        _, whole_rejected = prompt_and_whole(prompt, rejected, tokenizer, **options)
    except DataError:
        raise
    except Exception as error:
        raise not_tokenized(examples, index, error) from error
    # As in TRL, one length for both, and the completion begins where prompt and whole differ.
    length = min(common_prefix(start, whole) for whole in (whole_chosen, whole_rejected))
    return sequence(whole_chosen, length), sequence(whole_rejected, length)


def _parts(row: Row) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected; a prompt that is not named is what the two begin with."""
    chosen, rejected = row["chosen"], row["rejected"]
    if "prompt" in row:
        return row["prompt"], chosen, rejected
    length = _shared(chosen, rejected)
    return chosen[:length], chosen[length:], rejected[length:]


def _shared(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Where an implicit prompt ends, as in TRL: before the space that stands there, if any.

    Where one continues the other, the last of what they share is left to both completions.
    """
    shortest = min(len(chosen), len(rejected))
    differing = (i for i in range(shortest) if chosen[i] != rejected[i])
    length = next(differing, None)
    if length is None:
        return max(0, shortest - 1)
    if isinstance(chosen, str) and length and chosen[length - 1] == " ":
        return length - 1
    return length


def _nothing_counts(
    examples: ExampleSet, equal: int, truncated: int, limit: int | None
) -> DataError:
    if equal == len(examples.rows):
        return DataError(
            f"In every pair of '{examples.source}' the chosen and the rejected completion are "
            "equal.",
            hint="Check which columns were read: --column chosen=... --column rejected=...",
        )
    why = "the completions are empty"
    if truncated:
        why = f"{truncated} are longer than {limit} tokens (--max-length)"
    return DataError(f"No pair of '{examples.source}' carries loss: {why}.")


def _notes(truncated: int, limit: int | None, equal: int, dropped: int) -> tuple[str, ...]:
    notes = []
    if truncated:
        notes.append(f"{truncated} pairs were cut at {limit} tokens (--max-length).")
    if equal:
        notes.append(f"{equal} pairs were left out: their chosen and rejected text are equal.")
    if dropped:
        notes.append(f"{dropped} pairs were left out: no token of theirs carries loss.")
    return tuple(notes)
