"""Held-out loss of a base model and of what trainings made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from hlscore.errors import ModelError, UsageError, first_line
from hlscore.inputs.examples import read_examples
from hlscore.inputs.hub import find_adapter
from hlscore.inputs.model import load_model
from hlscore.probes.encode import encode
from hlscore.settings import DataSettings, ModelSettings
from hlscore.validation.training import counted_tokens, example_sums


def held_out_losses(
    base: ModelSettings, data: DataSettings, runs: Mapping[str, str]
) -> dict[str, object]:
    """The loss of a base model and of trainings of it on the same data, one after the other.

    Args:
        base: The base model.
        data: What is measured on.
        runs: PEFT adapters or whole models by name.

    Returns:
        The `source` of the data, the number of `examples`, and the `losses` by name in nats per
        counted token, that of `base` first.
    """
    examples = read_examples(data, seed=0)
    loaded = load_model(base)
    probes = encode(
        examples, loaded.tokenizer, loaded.model, max_length=data.max_length, groups=2, seed=0
    )

    def loss(model: torch.nn.Module) -> float:
        sums = example_sums(model.eval(), probes.sequences, probes.pad_token_id, batch_size=16)
        return sum(sums) / counted_tokens(probes.sequences)

    losses = {"base": loss(loaded.model)}
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
    return {"source": str(data.data), "examples": len(probes.sequences), "losses": losses}
