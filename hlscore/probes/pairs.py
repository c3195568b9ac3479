"""Preference pairs: two sequences each, weighed by the slopes of the pairwise loss."""

from __future__ import annotations

import hashlib

from transformers import PreTrainedTokenizerBase

from hlscore.errors import DataError
from hlscore.inputs.formats import ExampleSet, Row
from hlscore.inputs.tokens import common_prefix, naming_example, prompt_and_whole, rendering
from hlscore.objectives.preference import slopes
from hlscore.probes.units import ProbeExample, ProbeUnit, sequence
from hlscore.records import ProbeSummary
from hlscore.settings import ObjectiveSettings
from hlscore.wording import count


def pair_units(
    examples: ExampleSet,
    tokenizer: PreTrainedTokenizerBase,
    objective: ObjectiveSettings,
    limit: int | None,
) -> tuple[list[ProbeUnit], ProbeSummary]:
    """Tokenize pairs, each a unit."""
    units, truncated, equal = [], 0, 0
    for index, row in enumerate(examples.rows):
        with naming_example(examples.source, index):
            pair = _encode_row(row, tokenizer)
        chosen, rejected = (item.shortened(limit) for item in pair)
        truncated += chosen is not pair[0] or rejected is not pair[1]
        if chosen.input_ids == rejected.input_ids:
            # Else it was only cut where the two begin to differ.
            equal += pair[0].input_ids == pair[1].input_ids
        elif chosen.counted_tokens or rejected.counted_tokens:
            # As in TRL, lengths below 1 count as 1.
            first, second = (max(1, item.counted_tokens) for item in (chosen, rejected))
            weights = slopes(objective.loss_type_name, first, second, objective.beta_value)
            sequences = tuple(
                # The likelihood loss has a minus of its own.
                ProbeExample(item.input_ids, item.counted, -slope)
                for item, slope in zip((chosen, rejected), weights, strict=True)
                if item.counted_tokens and slope
            )
            # However a loss weighs its completions.
            key = hashlib.sha256(chosen.digest(0) + rejected.digest(0)).hexdigest()
            units.append(ProbeUnit(sequences, count=1, key=key, pair=(chosen, rejected)))
    dropped = len(examples.rows) - len(units)
    if not units and equal == len(examples.rows):
        raise DataError(
            f"In every pair of '{examples.source}' the chosen and the rejected completion are "
            "equal.",
            hint="Check which columns were read: --column chosen=... --column rejected=...",
        )
    if not units:
        why = "the completions are empty"
        if truncated:
            why = f"{truncated} are longer than {limit} tokens (--max-length)"
        raise DataError(f"No pair of '{examples.source}' carries loss: {why}.")
    notes = [*examples.notes]
    if truncated:
        notes.append(f"{count(truncated, 'pair')} cut at {limit} tokens (--max-length).")
    if equal:
        notes.append(f"{count(equal, 'pair')} left out: chosen and rejected text are equal.")
    if dropped - equal:
        notes.append(f"{count(dropped - equal, 'pair')} left out: no token carries loss.")
    return units, ProbeSummary(
        source=examples.source,
        format=examples.format,
        objective="dpo",
        loss_type=objective.loss_type_name,
        examples=len(units),
        truncated=truncated,
        dropped=dropped,
        notes=tuple(notes),
    )


def _encode_row(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[ProbeExample, ProbeExample]:
    """Chosen and rejected sequence; a prompt that is not named is what the two begin with."""
    chosen, rejected = row["chosen"], row["rejected"]
    if "prompt" in row:
        prompt = row["prompt"]
    else:
        shortest = min(len(chosen), len(rejected))
        differ = next((i for i in range(shortest) if chosen[i] != rejected[i]), None)
        # Where one continues the other, the last of what they share is left to both completions.
        end = max(0, shortest - 1) if differ is None else differ
        # As in TRL, the space before the completions belongs to them.
        if differ and isinstance(chosen, str) and chosen[differ - 1] == " ":
            end = differ - 1
        prompt, chosen, rejected = chosen[:end], chosen[end:], rejected[end:]
    options = rendering(row)
    start, whole_chosen = prompt_and_whole(prompt, chosen, tokenizer, **options)
    _, whole_rejected = prompt_and_whole(prompt, rejected, tokenizer, **options)
    # As in TRL, one length for both, and the completion begins where prompt and whole differ.
    length = min(common_prefix(start, whole) for whole in (whole_chosen, whole_rejected))
    return sequence(whole_chosen, length), sequence(whole_rejected, length)
