"""Token ids of texts and conversations, with TRL's conventions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import DataError, first_line
from hlscore.inputs.formats import Row

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


def text_ids(
    text: str, tokenizer: PreTrainedTokenizerBase, *, special: bool = True, ended: bool = False
) -> list[int]:
    """Token ids of a text, which ends with the tokenizer's end token, once, if `ended`."""
    if ended and tokenizer.eos_token:
        text = text.removesuffix(tokenizer.eos_token) + tokenizer.eos_token
    # verbose=False: the tokenizer's own warning about long texts is ours to give, once.
    ids: list[int] = tokenizer(text, verbose=False, add_special_tokens=special)["input_ids"]
    return ids


def rendering(row: Row) -> dict[str, Any]:
    """Arguments of the chat template that a row brings: its tools and `chat_template_kwargs`."""
    return {"tools": row.get("tools"), **(row.get("chat_template_kwargs") or {})}


def template_ids(
    messages: Sequence[Row], tokenizer: PreTrainedTokenizerBase, **options: Any
) -> dict[str, list[int]]:
    """Apply the chat template."""
    if not tokenizer.chat_template:
        raise DataError(
            "The data holds conversations, but the model's tokenizer has no chat template.",
            hint="Use an instruction-tuned model, or data with text or prompt/completion strings.",
        )
    encoded: dict[str, list[int]] = tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=True, **options
    )
    return encoded


def prompt_ids(
    prompt: str | Sequence[Row], tokenizer: PreTrainedTokenizerBase, **options: Any
) -> list[int]:
    """Token ids of a prompt; those of a conversation end where the assistant begins."""
    if isinstance(prompt, str):
        return text_ids(prompt, tokenizer)
    return template_ids(prompt, tokenizer, add_generation_prompt=True, **options)["input_ids"]


def prompt_and_whole(
    prompt: str | Sequence[Row],
    completion: str | Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    **options: Any,
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt, and of prompt and completion together, ended.

    The first need not be a prefix of the second.
    """
    if isinstance(prompt, str):
        whole = text_ids(f"{prompt}{completion}", tokenizer, ended=True)
        return text_ids(prompt, tokenizer), whole
    whole = template_ids(joined_turns(prompt, completion), tokenizer, **options)["input_ids"]
    return prompt_ids(prompt, tokenizer, **options), whole


def assistant(text: str) -> Row:
    """One message of the assistant."""
    return {"role": "assistant", "content": text}


def joined_turns(prompt: Sequence[Row], completion: str | Sequence[Row]) -> list[Row]:
    """A conversation and its continuation; text is one message of the assistant."""
    turns = [assistant(completion)] if isinstance(completion, str) else completion
    return [*prompt, *turns]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix of two sequences of ids."""
    same = (a == b for a, b in zip(first, second, strict=False))
    return sum(takewhile(bool, same))


def assistant_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """TRL's version of a chat template, which marks the assistant's tokens.

    `None` where the tokenizer's own template marks them.
    """
    own = tokenizer.chat_template or ""
    if _GENERATION_TAG.search(own["default"] if isinstance(own, dict) else own):
        return None
    try:
        from trl.chat_template_utils import get_training_chat_template

        known: str | None = get_training_chat_template(tokenizer)
        return known
    except Exception as error:
        why, way_out = (
            "TRL knows none for it",
            "Give columns prompt and completion, or a chat template that marks them.",
        )
        if isinstance(error, ImportError):
            why = "TRL, which knows others, is not installed"
            way_out = "Run pip install 'hlscore[trl]', or give columns prompt and completion."
        raise DataError(
            "The chat template does not mark the assistant's tokens ({% generation %}), and "
            f"{why}.",
            hint=way_out,
        ) from error


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens that a model can read at once; `None` when its configuration sets no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def embedding_rows(model: PreTrainedModel) -> int:
    """Token ids that the model knows."""
    weight = getattr(model.get_input_embeddings(), "weight", None)
    # Some embed tokens of several kinds with a module of their own.
    return int(model.config.get_text_config().vocab_size if weight is None else weight.shape[0])


def pad_token_id(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """Any id will do that has an embedding: padded places count nothing."""
    rows = embedding_rows(model)
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int) and token_id < rows:
            return token_id
    return 0


def end_token_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> tuple[int, ...]:
    """Ids that end a completion, rising: those of the tokenizer and of `generation_config`."""
    found: set[int] = set()
    settings: Any = getattr(model, "generation_config", None)
    for ids in (tokenizer.eos_token_id, getattr(settings, "eos_token_id", None)):
        if isinstance(ids, int):
            found.add(ids)
        elif ids is not None:
            found |= set(ids)
    return tuple(sorted(found))


@contextmanager
def naming_example(
    source: str, index: int, *, way_out: str = "check the chat template of the tokenizer"
) -> Iterator[None]:
    """Name the example that a tokenizer or its template refuses."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"Example {index} of '{source}' cannot be tokenized: {first_line(error)}",
            hint=f"Repair or remove that example, or {way_out}.",
        ) from error
