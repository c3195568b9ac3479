"""Examples for supervised fine-tuning: one sequence each, the loss on the counted tokens."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from hlscore.errors import DataError, first_line
from hlscore.inputs.formats import ExampleSet, Row
from hlscore.inputs.tokens import (
    common_prefix,
    marks_assistant,
    prompt_and_whole,
    template_ids,
    text_ids,
    with_eos,
)
from hlscore.probes.encoding import Encoding, check_two, shortened
from hlscore.probes.units import ProbeExample, ProbeSet, ProbeUnit
from hlscore.records import ProbeSummary
from hlscore.settings import DEFAULT_MAX_LENGTH


def encode_supervised(examples: ExampleSet, how: Encoding) -> ProbeSet:
    """Tokenize examples; see `encode`."""
    tokenizer, limit = how.tokenizer, how.limit(DEFAULT_MAX_LENGTH) or DEFAULT_MAX_LENGTH
    encoded = [
        _encode_row(examples, index, row, tokenizer) for index, row in enumerate(examples.rows)
    ]
    cut = [shortened(item, limit) for item in encoded]
    kept = [ProbeUnit((item,), item.counted_tokens) for item in cut if item.counted_tokens]
    truncated = sum(len(item.input_ids) > limit for item in encoded)
    if not kept:
        raise _nothing_counts(examples, limit, truncated)
    check_two(kept, examples.source, "example")
    dropped = len(cut) - len(kept)
    return how.probe_set(
        kept,
        ProbeSummary(
            source=examples.source,
            format=examples.format,
            examples=len(kept),
            truncated=truncated,
            dropped=dropped,
            notes=_notes(examples, tokenizer, limit, truncated, dropped),
        ),
    )


def _encode_row(
    examples: ExampleSet, index: int, row: Row, tokenizer: PreTrainedTokenizerBase
) -> ProbeExample:
    try:
        if examples.format == "messages":
            return _encode_messages(row, tokenizer)
        if examples.format == "text":
            return sequence(text_ids(with_eos(row["text"], tokenizer), tokenizer), 0)
        start, whole = prompt_and_whole(row["prompt"], row["completion"], tokenizer)
        if isinstance(row["prompt"], str):
            return sequence(whole, len(start))
        # Some templates open more in a generation prompt (<think>) than a finished turn holds.
        return sequence(whole, common_prefix(start, whole))
    except DataError:
        raise
    except Exception as error:
        raise not_tokenized(examples, index, error) from error


def not_tokenized(examples: ExampleSet, index: int, error: Exception) -> DataError:
    """The error for an example that the tokenizer or its template refuses."""
    return DataError(
        f"Example {index} of '{examples.source}' cannot be tokenized: {first_line(error)}",
        hint="Repair that example, or check the chat template of the tokenizer."
        if examples.format != "text"
        else "Repair or remove that example.",
    )


def _encode_messages(row: Row, tokenizer: PreTrainedTokenizerBase) -> ProbeExample:
    marks = marks_assistant(tokenizer)
    encoded = template_ids(row["messages"], tokenizer, return_assistant_tokens_mask=marks)
    ids = encoded["input_ids"]
    if not marks:
        return sequence(ids, 0)
    counted = [bool(mark) for mark in encoded["assistant_masks"]]
    return ProbeExample(tuple(ids), (False, *counted[1:]))


def sequence(ids: list[int], prompt_tokens: int, coefficient: float = 1.0) -> ProbeExample:
    """A sequence whose loss begins after its prompt."""
    first = max(1, prompt_tokens)
    return ProbeExample(tuple(ids), tuple(place >= first for place in range(len(ids))), coefficient)


def _nothing_counts(examples: ExampleSet, limit: int, truncated: int) -> DataError:
    why = {
        "text": "the texts are empty or a single token long",
        "prompt_completion": "the completions are empty",
        "messages": "the chat template marks no token as the assistant's",
    }[examples.format]
    if truncated:
        why = (
            f"{truncated} of {len(examples.rows)} are longer than {limit} tokens and lost "
            "their completion; raise --max-length"
        )
    return DataError(f"No token of '{examples.source}' carries loss: {why}.")


def _notes(
    examples: ExampleSet,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    truncated: int,
    dropped: int,
) -> tuple[str, ...]:
    notes = []
    if truncated:
        notes.append(f"{truncated} examples were cut at {limit} tokens (--max-length).")
    if dropped:
        notes.append(f"{dropped} examples were left out: no token of theirs carries loss.")
    if examples.format == "messages" and not marks_assistant(tokenizer):
        notes.append(
            "The chat template does not mark assistant tokens: every token of a conversation "
            "carries loss."
        )
    return tuple(notes)
