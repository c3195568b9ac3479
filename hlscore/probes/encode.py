"""From examples or rollouts to the probe set of an objective."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import DataError, UsageError
from hlscore.inputs.formats import ExampleSet
from hlscore.inputs.tokens import context_length, embedding_rows, pad_token_id
from hlscore.probes.completions import MORE_SIGNAL, completion_units
from hlscore.probes.pairs import pair_units
from hlscore.probes.sft import example_units
from hlscore.probes.units import ProbeSet, make_probe_set
from hlscore.rollouts.records import RolloutSet
from hlscore.settings import DEFAULT_MAX_LENGTH, ObjectiveSettings


def encode(
    examples: ExampleSet | RolloutSet,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    objective: ObjectiveSettings = ObjectiveSettings(),
    max_length: int | None,
    groups: int,
    seed: int,
    batch_size: int | None = None,
    halves: bool = True,
) -> ProbeSet:
    """Tokenize what is probed and split it into halves: by example, pair or prompt.

    Args:
        model: The model, for its context length and vocabulary; may be on the meta device.
        max_length: Tokens kept of each sequence; `None` for the default of the objective.
        batch_size: Sequences that a group should have at least, see `make_probe_set`.
        halves: Whether examples that cannot be split into two halves are refused; a score
            compares them, a mean loss does not.
    """
    temperature = 1.0
    if isinstance(examples, RolloutSet):
        temperature = objective.temperature or examples.temperature or 1.0
        limit = length_limit(model, max_length, default=None)
        units, summary = completion_units(examples, objective, limit)
    elif objective.objective == "grpo":
        raise DataError(
            f"'{examples.source}' holds prompts, but no completions with rewards.",
            hint="Sample them first: without --rollouts the command does it.",
        )
    else:
        limit = length_limit(model, max_length, default=DEFAULT_MAX_LENGTH)
        encoder = pair_units if objective.objective == "dpo" else example_units
        units, summary = encoder(examples, tokenizer, objective, limit)
    rows = embedding_rows(model)
    sequences = (item for unit in units for item in unit.sequences)
    largest = max((max(item.input_ids) for item in sequences), default=0)
    if largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest) if largest < len(tokenizer) else "?"
        raise DataError(
            f"The data or its tokenizer gives id {largest} ('{token}'), but the model's "
            f"embedding has {rows} rows.",
            hint="Use the tokenizer that belongs to the model, or resize the embedding.",
        )
    probes = make_probe_set(
        units,
        summary=summary,
        pad_token_id=pad_token_id(tokenizer, model),
        groups=groups,
        seed=seed,
        batch_size=batch_size,
        temperature=temperature,
    )
    if not halves or all(any(half) for half in probes.halves):
        return probes
    hint = "The score compares two halves of the probes: give at least 2, better 64."
    drawn = summary.rollouts
    if drawn is None:
        what = "pair" if summary.objective == "dpo" else "example"
        copies = "" if len(units) == 1 else f", {len(units)} times"
        raise DataError(f"'{summary.source}' has a single usable {what}{copies}.", hint=hint)
    if len(units) == 1:
        raise DataError(f"All completions of '{summary.source}' continue one prompt.", hint=hint)
    raise DataError(
        f"Only {drawn.carrying} of {drawn.prompts} groups of '{summary.source}' carry a gradient, "
        "and all fell into one half of the probes: the score compares two halves.",
        hint=f"Use more prompts (--samples). {MORE_SIGNAL}",
    )


def length_limit(
    model: PreTrainedModel, max_length: int | None, *, default: int | None
) -> int | None:
    """Tokens kept of each sequence, by default those of the context; `None` without limit."""
    context = context_length(model)
    if max_length is None:
        return min((limit for limit in (default, context) if limit is not None), default=None)
    if context is not None and max_length > context:
        raise UsageError(
            f"--max-length is {max_length}, but the model reads at most {context} tokens.",
            hint=f"Use --max-length {context} or less.",
        )
    return max_length
