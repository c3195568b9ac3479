"""A byte-level tokenizer built in memory, and chat templates for it.

Byte `b` has id `b`; the special tokens follow. Nothing is trained or downloaded.
"""

from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD = "<|pad|>"
BOS = "<|bos|>"
EOS = "<|eos|>"
SPECIAL_TOKENS = (
    PAD,
    BOS,
    EOS,
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
"""The special tokens in the order of their ids, from 256 on."""

VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)

CHAT_TEMPLATE_WITH_GENERATION = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{{- message['content'] + '<|end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
"""A chat template that marks what the assistant says with generation tags."""

CHAT_TEMPLATE_WITHOUT_GENERATION = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
"""The same text for every conversation, without the generation tags."""


def byte_tokenizer(
    *,
    pad: bool = True,
    chat_template: str | None = None,
    eos: bool = True,
    add_bos: bool = False,
) -> PreTrainedTokenizerFast:
    """Builds the tokenizer.

    The ids do not depend on the arguments: a special token that is switched off stays in the
    vocabulary and only loses its role.

    Args:
        pad: Whether the tokenizer has a padding token.
        chat_template: The chat template, None for a tokenizer without one.
        eos: Whether the tokenizer has an end-of-sequence token.
        add_bos: Whether encoding puts the beginning-of-sequence token before the text.

    Returns:
        The tokenizer.
    """
    vocab = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A",
            pair=f"{BOS} $A {BOS} $B",
            special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
        )
    roles = {"bos_token": BOS}
    if pad:
        roles["pad_token"] = PAD
    if eos:
        roles["eos_token"] = EOS
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return make(
        tokenizer_object=tokenizer,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        **roles,
    )


def _byte_characters() -> list[str]:
    """The printable character that byte-level tokenizers use for each byte, in byte order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters = []
    substitutes = 0
    for byte in range(256):
        if byte in printable:
            characters.append(chr(byte))
        else:
            characters.append(chr(256 + substitutes))
            substitutes += 1
    return characters
