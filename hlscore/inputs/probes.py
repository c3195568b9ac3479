"""From examples to token ids and loss masks, with TRL's conventions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import DataError, UsageError, first_line
from hlscore.inputs.examples import ExampleSet, Row
from hlscore.records import ProbeSummary
from hlscore.settings import DEFAULT_MAX_LENGTH

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class ProbeExample:
    """One tokenized example.

    Attributes:
        input_ids: Token ids.
        counted: Whether each token carries loss; the first never does, nothing predicts it.
    """

    input_ids: tuple[int, ...]
    counted: tuple[bool, ...]

    @property
    def counted_tokens(self) -> int:
        """Number of tokens that carry loss."""
        return sum(self.counted)

    def digest(self, seed: int) -> bytes:
        """Hash ids and mask; orders examples independently of how they were listed."""
        content = hashlib.sha256(f"{seed}:".encode())
        content.update(np.asarray(self.input_ids, dtype="<i8").tobytes())
        content.update(np.asarray(self.counted, dtype="u1").tobytes())
        return content.digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSet:
    """Tokenized examples, split into two halves of bootstrap groups.

    Attributes:
        halves: Two tuples of groups; a group is a tuple of examples.
        summary: What the artifacts say about them.
        pad_token_id: Id used for padding; padded places count nothing.
    """

    halves: tuple[tuple[tuple[ProbeExample, ...], ...], ...]
    summary: ProbeSummary
    pad_token_id: int


def encode(
    examples: ExampleSet,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    max_length: int | None,
    groups: int,
    seed: int,
) -> ProbeSet:
    """Tokenize examples and split them into halves.

    Args:
        examples: Checked examples.
        tokenizer: The model's tokenizer; needs no padding token.
        model: The model, for its context length and vocabulary; may be on the meta device.
        max_length: Tokens kept of each example.
        groups: Bootstrap groups per half, at most.
        seed: Seed of the split into halves.

    Returns:
        The probe set.

    Raises:
        UsageError: `max_length` is beyond the model's context.
        DataError: Too few examples carry loss, or a token id has no embedding.
    """
    limit = _length_limit(model, max_length)
    encoded = [
        _encode_row(examples, index, row, tokenizer) for index, row in enumerate(examples.rows)
    ]
    cut = [ProbeExample(item.input_ids[:limit], item.counted[:limit]) for item in encoded]
    kept = [item for item in cut if item.counted_tokens]
    truncated = sum(len(item.input_ids) > limit for item in encoded)
    _check_kept(kept, examples, limit, truncated)
    _check_vocabulary(kept, tokenizer, model)
    halves = split_halves(kept, groups=groups, seed=seed)
    hashes = sorted(item.digest(0) for item in kept)
    return ProbeSet(
        halves=halves,
        pad_token_id=_pad_token_id(tokenizer, _embedding_rows(model)),
        summary=ProbeSummary(
            source=examples.source,
            format=examples.format,
            hash=f"sha256:{hashlib.sha256(b''.join(hashes)).hexdigest()}",
            examples=len(kept),
            groups=sum(len(half) for half in halves),
            counted_tokens=sum(item.counted_tokens for item in kept),
            total_tokens=sum(len(item.input_ids) for item in kept),
            truncated=truncated,
            dropped=len(cut) - len(kept),
            notes=_notes(examples, tokenizer, limit, truncated, len(cut) - len(kept)),
        ),
    )


def split_halves(
    examples: Sequence[ProbeExample], *, groups: int, seed: int
) -> tuple[tuple[tuple[ProbeExample, ...], ...], ...]:
    """Split examples into two halves of groups, whatever order they come in.

    Examples are ordered by a seeded hash of their content. Copies of one example stay
    together, so that halves and groups stay independent.

    Args:
        examples: At least two different examples.
        groups: Groups per half, at most one per example.
        seed: Seed of the hash.

    Returns:
        Two tuples of groups.
    """
    ordered = sorted(examples, key=lambda item: item.digest(seed))
    middle = _cut_near(ordered, (len(ordered) + 1) // 2)
    halves = []
    for half in (ordered[:middle], ordered[middle:]):
        count = min(groups, len(half))
        inner = {_cut_near(half, len(half) * i // count) for i in range(1, count)}
        bounds = [0, *sorted(inner - {0, len(half)}), len(half)]
        halves.append(tuple(tuple(half[a:b]) for a, b in pairwise(bounds)))
    return tuple(halves)


def _cut_near(ordered: Sequence[ProbeExample], wanted: int) -> int:
    """Nearest place to a wanted one that does not part copies of one example."""
    places = (i for i in range(1, len(ordered)) if ordered[i - 1] != ordered[i])
    return min(places, key=lambda place: abs(place - wanted), default=len(ordered))


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens that a model can read at once; `None` when its configuration sets no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _length_limit(model: PreTrainedModel, max_length: int | None) -> int:
    context = context_length(model)
    if max_length is None:
        return min(DEFAULT_MAX_LENGTH, context or DEFAULT_MAX_LENGTH)
    if context is not None and max_length > context:
        raise UsageError(
            f"--max-length is {max_length}, but the model reads at most {context} tokens.",
            hint=f"Use --max-length {context} or less.",
        )
    return max_length


def _encode_row(
    examples: ExampleSet, index: int, row: Row, tokenizer: PreTrainedTokenizerBase
) -> ProbeExample:
    try:
        if examples.format == "messages":
            return _encode_messages(row["messages"], tokenizer)
        if examples.format == "text":
            return _example(_ids(_with_eos(row["text"], tokenizer), tokenizer), 0)
        if isinstance(row["prompt"], list):
            return _encode_conversation(row["prompt"], row["completion"], tokenizer)
        return _encode_completion(row["prompt"], row["completion"], tokenizer)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"Example {index} of '{examples.source}' cannot be tokenized: {first_line(error)}",
            hint="Repair that example, or check the chat template of the tokenizer."
            if examples.format != "text"
            else "Repair or remove that example.",
        ) from error


def _encode_completion(
    prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase
) -> ProbeExample:
    prompt_ids = _ids(prompt, tokenizer)
    return _example(_ids(_with_eos(prompt + completion, tokenizer), tokenizer), len(prompt_ids))


def _encode_conversation(
    prompt: list[Row], completion: list[Row] | str, tokenizer: PreTrainedTokenizerBase
) -> ProbeExample:
    _require_template(tokenizer)
    turns = completion if isinstance(completion, list) else [_assistant(completion)]
    start = _template_ids(prompt, tokenizer, add_generation_prompt=True)["input_ids"]
    whole = _template_ids([*prompt, *turns], tokenizer)["input_ids"]
    # Some templates open more in a generation prompt (<think>) than a finished turn holds.
    return _example(whole, _common_prefix(start, whole))


def _common_prefix(first: list[int], second: list[int]) -> int:
    same = (a == b for a, b in zip(first, second, strict=False))
    return sum(1 for _ in takewhile(bool, same))


def _assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def _encode_messages(messages: list[Row], tokenizer: PreTrainedTokenizerBase) -> ProbeExample:
    _require_template(tokenizer)
    marks = marks_assistant(tokenizer)
    encoded = _template_ids(messages, tokenizer, return_assistant_tokens_mask=marks)
    ids = encoded["input_ids"]
    if not marks:
        return _example(ids, 0)
    counted = [bool(mark) for mark in encoded["assistant_masks"]]
    return ProbeExample(tuple(ids), (False, *counted[1:]))


def marks_assistant(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template tells which tokens the assistant wrote."""
    return bool(_GENERATION_TAG.search(str(tokenizer.chat_template or "")))


def _require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise DataError(
            "The data holds conversations, but the model's tokenizer has no chat template.",
            hint="Use an instruction-tuned model, or data with text or prompt/completion strings.",
        )


def _template_ids(
    messages: list[Row], tokenizer: PreTrainedTokenizerBase, **options: bool
) -> dict[str, list[int]]:
    encoded: dict[str, list[int]] = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, **options
    )
    return encoded


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # verbose=False: the tokenizer's own warning about long texts is ours to give, once.
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids


def _with_eos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    eos = tokenizer.eos_token
    return text if not eos or text.endswith(eos) else text + eos


def _example(ids: list[int], prompt_tokens: int) -> ProbeExample:
    first = max(1, prompt_tokens)
    return ProbeExample(tuple(ids), tuple(place >= first for place in range(len(ids))))


def _check_kept(kept: list[ProbeExample], examples: ExampleSet, limit: int, truncated: int) -> None:
    if not kept:
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
        raise DataError(f"No token of '{examples.source}' carries loss: {why}.")
    if len(set(kept)) < 2:
        copies = "" if len(kept) == 1 else f", {len(kept)} times"
        raise DataError(
            f"'{examples.source}' has a single usable example{copies}.",
            hint="The score compares two halves of the probes: give at least 2, better 64.",
        )


def _check_vocabulary(
    kept: list[ProbeExample], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    rows = _embedding_rows(model)
    largest = max(max(item.input_ids) for item in kept)
    if largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise DataError(
            f"The tokenizer gives id {largest} ('{token}'), but the model's embedding has "
            f"{rows} rows.",
            hint="Use the tokenizer that belongs to the model, or resize the embedding.",
        )


def _embedding_rows(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _pad_token_id(tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """Any id will do that has an embedding: padded places count nothing."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int) and token_id < rows:
            return token_id
    return 0


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
