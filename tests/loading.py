"""Models whose sizes suit ways of loading: more blocks, or widths that 4-bit weights need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from families import FAMILIES
from transformers import PreTrainedModel

from hlscore.settings import ModelSettings

DEPTH = 6


def deepen(name: str) -> PreTrainedModel:
    family = FAMILIES[name]

    def config() -> Any:
        found = family.config()
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
