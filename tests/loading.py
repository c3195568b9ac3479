"""Models whose sizes suit ways of loading: more blocks, or widths that 4-bit weights need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, token_batch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from transformers import PreTrainedModel

from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.weights import dense_weight
from hlscore.settings import CandidateSettings, ModelSettings

DEPTH = 6


def deepen(name: str) -> PreTrainedModel:
    family = FAMILIES[name]

    def config() -> Any:
        found: Any = family.config()
        found.num_hidden_layers = DEPTH
        if getattr(found, "layer_types", None):
            found.layer_types = ["full_attention"] * DEPTH
        return found

    return replace(family, config=config).build()


def half_on_disk(folder: Path, model: PreTrainedModel, **options: Any) -> ModelSettings:
    """Settings under which about half of the blocks have to go to disk."""
    block = 4 * sum(p.numel() for p in model.model.layers[0].parameters())
    rest = 4 * sum(p.numel() for p in model.parameters()) - DEPTH * block
    # accelerate keeps room for one more block.
    size = rest + (DEPTH // 2 + 1.5) * block
    return ModelSettings(
        model=str(folder),
        device_map="auto",
        max_memory={"cpu": f"{size / 1000:.3f}KB"} | options.pop("max_memory", {}),
        **options,
    )


def widen(name: str) -> PreTrainedModel:
    """A model whose widths are multiples of 64, the block of 4-bit weights."""
    family = FAMILIES[name]
    wide = {"hidden_size": 64, "intermediate_size": 128, "n_embd": 64, "n_inner": 128}

    def config() -> Any:
        found = family.config()
        for key, size in wide.items():
            if key in found.to_dict():
                setattr(found, key, size)
        return found

    return replace(family, config=config).build()


def input_gradient(model: PreTrainedModel, blocks: nn.ModuleList | None = None) -> torch.Tensor:
    """Gradient at the output of the embedding, weights frozen, these blocks checkpointed."""
    model.requires_grad_(False)
    outputs: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        outputs.append(output.requires_grad_())

    def checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)

    handle = model.get_input_embeddings().register_forward_hook(keep)
    before = [block.forward for block in blocks or ()]
    for block in blocks or ():
        block.forward = checkpointed(block.forward)
    batch = token_batch()
    # Stopping early would leave the last weights of a block on the device.
    with set_checkpoint_early_stop(False):
        model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    for block, forward in zip(blocks or (), before, strict=True):
        block.forward = forward
    handle.remove()
    assert outputs[0].grad is not None
    return outputs[0].grad.float()


def assert_same_weights(
    model: PreTrainedModel,
    original: PreTrainedModel,
    candidates: CandidateSettings = CandidateSettings(),
) -> None:
    """Every candidate of a model can be read, and is bit for bit that of the original."""
    found = find_modules(model, candidates)
    assert found == find_modules(original, candidates)
    for item in candidates_of(found):
        weight = dense_weight(model, item)
        assert weight is not None
        assert not isinstance(weight, DTensor)
        assert torch.equal(weight, original.get_parameter(item.parameter)), item.parameter
