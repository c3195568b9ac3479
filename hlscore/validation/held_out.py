"""Held-out loss of a base model and of what trainings made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hlscore.errors import ModelError, UsageError, first_line
from hlscore.inputs.examples import read_examples
from hlscore.inputs.hub import find_adapter
from hlscore.inputs.model import load_model
from hlscore.probes.encode import encode
from hlscore.settings import DataSettings, ModelSettings
from hlscore.validation.examples import Examples
from hlscore.validation.training import Ground, example_sums

BASE = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Losses on the same examples.

    Attributes:
        source: The data, as given.
        examples: How many examples.
        losses: Nats per counted token, by name; the base model first.
    """

    source: str
    examples: int
    losses: Mapping[str, float]


def held_out_losses(
    base: ModelSettings, data: DataSettings, runs: Mapping[str, str], *, seed: int = 0
) -> HeldOut:
    """Measure a base model and trainings of it on data, one after the other.

    Args:
        base: The base model.
        data: What is measured on.
        runs: PEFT adapters or whole models by name.
        seed: Seed of the draw of examples.

    Returns:
        The losses.

    Raises:
        HlscoreError: Something cannot be used; the message says what.
    """
    examples = read_examples(data, seed=seed)
    loaded = load_model(base)
    probes = encode(
        examples, loaded.tokenizer, loaded.model,
        max_length=data.max_length, groups=2, seed=seed,
    )  # fmt: skip
    sequences = tuple(probes.sequences)
    counted = sum(item.counted_tokens for item in sequences)
    ground = Ground(
        model=loaded.model, tokenizer=loaded.tokenizer, steps=1, batch_size=4,
        examples=Examples(training=(), tuning=(), test=sequences),
    )  # fmt: skip
    loaded.model.eval()
    losses = {BASE: sum(example_sums(loaded.model, sequences, ground)) / counted}
    for name, run in runs.items():
        named = replace(base, model=run, revision=None)
        folder = find_adapter(named)
        if folder is None:
            model = load_model(named).model
            losses[name] = sum(example_sums(model.eval(), sequences, ground)) / counted
            continue
        try:
            from peft import PeftModel
        except ImportError as error:
            raise UsageError(
                "Adapters are loaded with PEFT, which is not installed.",
                hint="Run pip install 'hlscore[peft]', or leave --data out.",
            ) from error
        try:
            wrapped = PeftModel.from_pretrained(loaded.model, folder)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ModelError(f"PEFT cannot load '{run}': {first_line(error)}") from error
        losses[name] = sum(example_sums(wrapped.eval(), sequences, ground)) / counted
        del wrapped
        # Copies of modules stay in a model that PEFT unloads: the next one starts anew.
        loaded = load_model(base)
    return HeldOut(source=str(data.data), examples=len(sequences), losses=losses)
