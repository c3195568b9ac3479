"""Examples for supervised fine-tuning: one sequence each, the loss on the counted tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from hlscore.errors import DataError, UsageError
from hlscore.inputs.formats import ExampleSet
from hlscore.inputs.tokens import (
    assistant_template,
    common_prefix,
    joined_turns,
    naming_example,
    prompt_and_whole,
    rendering,
    template_ids,
    text_ids,
)
from hlscore.probes.units import ProbeExample, ProbeUnit, sequence
from hlscore.records import LossTokens, ProbeSummary
from hlscore.settings import ObjectiveSettings
from hlscore.wording import count

# Share of the counted tokens in a common beginning from which a note warns.
_MUCH = 0.2


def example_units(
    examples: ExampleSet,
    tokenizer: PreTrainedTokenizerBase,
    objective: ObjectiveSettings,
    limit: int | None,
) -> tuple[list[ProbeUnit], ProbeSummary]:
    """Tokenize examples, each a unit of its own."""
    marking = None  # options of a template that marks the assistant's tokens, if only they count
    if objective.assistant_only_loss:
        for index, row in enumerate(examples.rows):
            if "text" in row or isinstance(row.get("prompt"), str):
                raise UsageError(
                    f"--assistant-only-loss is for conversations, but example {index} of "
                    f"'{examples.source}' is text.",
                    hint="Remove it: of prompt and completion only the completion carries loss.",
                )
        marking = {"chat_template": assistant_template(tokenizer)}
    kept: list[ProbeExample] = []
    truncated = 0
    for index in range(len(examples.rows)):
        whole = _encode_row(examples, index, tokenizer, marking)
        example = whole.shortened(limit)
        truncated += example is not whole
        if example.counted_tokens:
            kept.append(example)
    if not kept:
        why = {
            "text": "the texts are empty or a single token long",
            "prompt_completion": "the completions are empty",
            "messages": "the conversations are empty",
        }[examples.format]
        if truncated:
            why = (
                f"{truncated} of {len(examples.rows)} are longer than {limit} tokens and lost "
                "their completion"
            )
        raise DataError(
            f"No token of '{examples.source}' carries loss: {why}.",
            hint="Give examples that end within what the model reads, or a larger --max-length."
            if truncated
            else "Give examples with something to learn.",
        )
    dropped = len(examples.rows) - len(kept)
    loss_on: LossTokens = "completion" if examples.format == "prompt_completion" else "all"
    if marking is not None:
        loss_on = "assistant"
    notes = [*examples.notes]
    if truncated:
        notes.append(f"{count(truncated, 'example')} cut at {limit} tokens (--max-length).")
    if dropped:
        notes.append(f"{count(dropped, 'example')} left out: no token carries loss.")
    if loss_on == "all":
        # The tokens with which more than half of the examples begin.
        alike, shared, place = kept, 0, 0
        while longer := [item for item in alike if len(item.input_ids) > place]:
            ((token, found),) = Counter(item.input_ids[place] for item in longer).most_common(1)
            if 2 * found <= len(kept):
                break
            alike = [item for item in longer if item.input_ids[place] == token]
            shared += sum(item.counted[place] for item in alike)
            place += 1
        share = shared / sum(item.counted_tokens for item in kept)
        chat = examples.format == "messages"
        if share >= _MUCH:
            what = "conversations share, such as a system prompt" if chat else "texts share"
            way_out = "--assistant-only-loss or columns" if chat else "Columns"
            notes.append(
                f"{100 * share:.0f} % of the counted tokens lie in a prefix that most {what}. "
                f"{way_out} prompt and completion leave it out of the loss: train with the same "
                "mask."
            )
        elif chat:
            notes.append(
                "Every token of the conversations carries loss, as in TRL. --assistant-only-loss "
                "counts only the assistant's."
            )
    return [ProbeUnit((item,), item.counted_tokens) for item in kept], ProbeSummary(
        source=examples.source,
        format=examples.format,
        loss_on=loss_on,
        examples=len(kept),
        truncated=truncated,
        dropped=dropped,
        notes=tuple(notes),
    )


def _encode_row(
    examples: ExampleSet,
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    marking: Mapping[str, str | None] | None,
) -> ProbeExample:
    row = examples.rows[index]
    with naming_example(examples.source, index):
        if "text" in row:
            return sequence(text_ids(row["text"], tokenizer, ended=True), 0)
        options = {**(marking or {}), **rendering(row)}
        if "messages" in row:
            turns, first = row["messages"], 0
            ids = template_ids(turns, tokenizer, **options)["input_ids"]
        else:
            start, ids = prompt_and_whole(row["prompt"], row["completion"], tokenizer, **options)
            # The last token of a prompt may merge with the completion, and some templates open
            # more in a generation prompt (<think>) than a finished turn holds.
            first = common_prefix(start, ids)
        whole = sequence(ids, first)
        if marking is None:
            return whole
        if "messages" not in row:
            turns = joined_turns(row["prompt"], row["completion"])
        marks = template_ids(turns, tokenizer, return_assistant_tokens_mask=True, **options)[
            "assistant_masks"
        ]
    if 1 not in marks:
        raise DataError(
            f"No token of example {index} in '{examples.source}' is marked as the assistant's; "
            "TRL stops there too.",
            hint="Remove that example, or remove --assistant-only-loss.",
        )
    pairs = zip(whole.counted, marks, strict=True)
    return ProbeExample(whole.input_ids, tuple(bool(one and two) for one, two in pairs))
