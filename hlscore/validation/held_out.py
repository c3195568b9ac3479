"""Held-out loss of a base model and of what trainings made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from hlscore.errors import ModelError, UsageError, first_line
from hlscore.inputs.examples import read_examples
from hlscore.inputs.hub import find_adapter
from hlscore.inputs.model import load_model
from hlscore.probes.encode import encode
from hlscore.settings import DataSettings, ModelSettings
from hlscore.validation.training import example_sums

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
    """The loss of a base model and of trainings of it on the same data, one after the other.

    Args:
        base: The base model.
        data: What is measured on.
        runs: PEFT adapters or whole models by name.
        seed: Seed of the draw of examples.
    """
    examples = read_examples(data, seed=seed)
    loaded = load_model(base)
    probes = encode(
        examples, loaded.tokenizer, loaded.model,
        max_length=data.max_length, groups=2, seed=seed,
    )  # fmt: skip
    sequences = tuple(probes.sequences)

    def loss(model: torch.nn.Module) -> float:
        sums = example_sums(model.eval(), sequences, probes.pad_token_id, batch_size=16)
        return sum(sums) / sum(item.counted_tokens for item in sequences)

    losses = {BASE: loss(loaded.model)}
    for name, run in runs.items():
        named = replace(base, model=run, revision=None)
        folder = find_adapter(named)
        if folder is None:
            losses[name] = loss(load_model(named).model)
            continue
        try:
            from peft import PeftModel
        except ImportError as error:
            raise UsageError(
                "Adapters are loaded with PEFT, which is not installed.",
                hint="Run pip install 'hlscore[peft]', or remove --data.",
            ) from error
        try:
            wrapped = PeftModel.from_pretrained(loaded.model, folder)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ModelError(f"PEFT cannot load '{run}': {first_line(error)}") from error
        losses[name] = loss(wrapped)
        del wrapped
        # Copies of modules stay in a model that PEFT unloads: the next one starts anew.
        loaded = load_model(base)
    return HeldOut(source=str(data.data), examples=len(sequences), losses=losses)
