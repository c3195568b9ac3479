"""Examples for supervised fine-tuning: one sequence each, the loss on the counted tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from hlscore.errors import DataError, UsageError, first_line
from hlscore.inputs.formats import ExampleSet
from hlscore.inputs.tokens import (
    assistant_template,
    common_prefix,
    joined_turns,
    prompt_and_whole,
    rendering,
    template_ids,
    text_ids,
    with_eos,
)
from hlscore.probes.encoding import Encoding, check_two, shortened
from hlscore.probes.units import ProbeExample, ProbeSet, ProbeUnit
from hlscore.records import LossTokens, ProbeSummary
from hlscore.settings import DEFAULT_MAX_LENGTH

# Share of the counted tokens in a common beginning from which a note warns.
_MUCH = 0.2


def encode_supervised(examples: ExampleSet, how: Encoding) -> ProbeSet:
    """Tokenize examples; see `encode`."""
    limit = how.limit(DEFAULT_MAX_LENGTH) or DEFAULT_MAX_LENGTH
    assistant_only = how.objective.assistant_only_loss
    options: dict[str, Any] = {}
    if assistant_only:
        _check_conversations(examples)
        options = {"chat_template": assistant_template(how.tokenizer)}
    encoded = [
        _encode_row(examples, index, how.tokenizer, options, assistant_only=assistant_only)
        for index in range(len(examples.rows))
    ]
    cut = [shortened(item, limit) for item in encoded]
    kept = [ProbeUnit((item,), item.counted_tokens) for item in cut if item.counted_tokens]
    truncated = sum(len(item.input_ids) > limit for item in encoded)
    if not kept:
        raise _nothing_counts(examples, limit, truncated)
    check_two(kept, examples.source, "example")
    dropped = len(cut) - len(kept)
    loss_on: LossTokens = "all"
    if examples.format == "prompt_completion":
        loss_on = "completion"
    if assistant_only:
        loss_on = "assistant"
    notes = [*examples.notes]
    if truncated:
        notes.append(f"{truncated} examples were cut at {limit} tokens (--max-length).")
    if dropped:
        notes.append(f"{dropped} examples were left out: no token of theirs carries loss.")
    if loss_on == "all":
        notes += _all_tokens_note(examples, [unit.sequences[0] for unit in kept])
    return how.probe_set(
        kept,
        ProbeSummary(
            source=examples.source,
            format=examples.format,
            loss_on=loss_on,
            examples=len(kept),
            truncated=truncated,
            dropped=dropped,
            notes=tuple(notes),
        ),
    )


def _check_conversations(examples: ExampleSet) -> None:
    """Refuse texts where the assistant's tokens shall count."""
    for index, row in enumerate(examples.rows):
        if "text" in row or isinstance(row.get("prompt"), str):
            raise UsageError(
                f"--assistant-only-loss is for conversations, but example {index} of "
                f"'{examples.source}' is text.",
                hint="Remove it: of prompt and completion only the completion carries loss.",
            )


def _encode_row(
    examples: ExampleSet,
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
    *,
    assistant_only: bool,
) -> ProbeExample:
    row = examples.rows[index]
    try:
        if "text" in row:
            return sequence(text_ids(with_eos(row["text"], tokenizer), tokenizer), 0)
        options = {**options, **rendering(row)}
        if "messages" in row:
            turns, first = row["messages"], 0
            ids = template_ids(turns, tokenizer, **options)["input_ids"]
        else:
            start, ids = prompt_and_whole(row["prompt"], row["completion"], tokenizer, **options)
            # The last token of a prompt may merge with the completion, and some templates open
            # more in a generation prompt (<think>) than a finished turn holds.
            first = common_prefix(start, ids)
        whole = sequence(ids, first)
        if not assistant_only:
            return whole
        if "messages" not in row:
            turns = joined_turns(row["prompt"], row["completion"])
        marks = template_ids(turns, tokenizer, return_assistant_tokens_mask=True, **options)[
            "assistant_masks"
        ]
    except DataError:
        raise
    except Exception as error:
        raise not_tokenized(examples, index, error) from error
    if 1 not in marks:
        raise DataError(
            f"No token of example {index} in '{examples.source}' is marked as the assistant's; "
            "TRL stops there too.",
            hint="Remove that example, or remove --assistant-only-loss.",
        )
    pairs = zip(whole.counted, marks, strict=True)
    return ProbeExample(whole.input_ids, tuple(bool(one and two) for one, two in pairs))


def not_tokenized(examples: ExampleSet, index: int, error: Exception) -> DataError:
    """The error for an example that the tokenizer or its template refuses."""
    return DataError(
        f"Example {index} of '{examples.source}' cannot be tokenized: {first_line(error)}",
        hint="Repair that example, or check the chat template of the tokenizer."
        if examples.format != "text"
        else "Repair or remove that example.",
    )


def sequence(ids: list[int], prompt_tokens: int, coefficient: float = 1.0) -> ProbeExample:
    """A sequence whose loss begins after its prompt."""
    first = max(1, prompt_tokens)
    return ProbeExample(tuple(ids), tuple(place >= first for place in range(len(ids))), coefficient)


def _nothing_counts(examples: ExampleSet, limit: int, truncated: int) -> DataError:
    why = {
        "text": "the texts are empty or a single token long",
        "prompt_completion": "the completions are empty",
        "messages": "the conversations are empty",
    }[examples.format]
    if truncated:
        why = (
            f"{truncated} of {len(examples.rows)} are longer than {limit} tokens and lost "
            "their completion; raise --max-length"
        )
    return DataError(f"No token of '{examples.source}' carries loss: {why}.")


def _all_tokens_note(examples: ExampleSet, kept: Sequence[ProbeExample]) -> list[str]:
    """Say that all tokens count, above all where many of them are always the same."""
    chat = examples.format == "messages"
    way_out = "--assistant-only-loss or columns prompt and completion"
    if not chat:
        way_out = "Columns prompt and completion"
    share = shared_beginning(kept)
    if share >= _MUCH:
        what = "conversations share, such as a system prompt" if chat else "texts share"
        return [
            f"{100 * share:.0f} % of the counted tokens lie in a prefix that most {what}. "
            f"{way_out} leave it out of the loss: train with the same mask."
        ]
    if chat:
        return [
            "Every token of the conversations carries loss, as in TRL. --assistant-only-loss "
            "counts only the assistant's."
        ]
    return []


def shared_beginning(sequences: Sequence[ProbeExample]) -> float:
    """Share of the counted tokens that lie in the longest prefix of more than half the sequences.

    Returns:
        A share in [0, 1].
    """
    together, carried, place = list(sequences), 0, 0
    while True:
        longer = [item for item in together if len(item.input_ids) > place]
        found = Counter(item.input_ids[place] for item in longer).most_common(1)
        if not found or 2 * found[0][1] <= len(sequences):
            break
        together = [item for item in longer if item.input_ids[place] == found[0][0]]
        carried += sum(item.counted[place] for item in together)
        place += 1
    return carried / sum(item.counted_tokens for item in sequences)
