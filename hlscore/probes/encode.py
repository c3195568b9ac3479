"""From examples or rollouts to the probe set of an objective."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import DataError
from hlscore.inputs.formats import ExampleSet
from hlscore.probes.completions import encode_completions
from hlscore.probes.encoding import Encoding
from hlscore.probes.pairs import encode_pairs
from hlscore.probes.sft import encode_supervised
from hlscore.probes.units import ProbeSet
from hlscore.rollouts.records import RolloutSet
from hlscore.settings import ObjectiveSettings


def encode(
    examples: ExampleSet | RolloutSet,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    objective: ObjectiveSettings = ObjectiveSettings(),  # noqa: B008 - frozen
    max_length: int | None,
    groups: int,
    seed: int,
    batch_size: int | None = None,
) -> ProbeSet:
    """Tokenize what is probed and split it into halves: by example, pair or prompt.

    Args:
        examples: Checked examples; rollouts for reinforcement learning.
        tokenizer: The model's tokenizer; needs no padding token.
        model: The model, for its context length and vocabulary; may be on the meta device.
        groups: Bootstrap groups per half, at most.
        seed: Seed of the split into halves.
        batch_size: Sequences that a group should have at least, see `make_probe_set`.
    """
    how = Encoding(
        tokenizer=tokenizer,
        model=model,
        objective=objective,
        max_length=max_length,
        groups=groups,
        seed=seed,
        batch_size=batch_size,
    )
    if isinstance(examples, RolloutSet):
        return encode_completions(examples, how)
    if objective.objective == "dpo":
        return encode_pairs(examples, how)
    if objective.objective == "grpo":
        raise DataError(
            f"'{examples.source}' holds prompts, but no completions with rewards.",
            hint="Sample them first: without --rollouts the command does it.",
        )
    return encode_supervised(examples, how)
