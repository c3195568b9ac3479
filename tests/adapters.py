"""Models and adapters whose weights are moved at random, as after a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel


def moved(model: PreTrainedModel, *, scale: float = 0.01, seed: int = 1) -> PreTrainedModel:
    """Every weight moved at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in dict(model.named_parameters()).values():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(noise.to(weight.dtype), alpha=scale)
    return model


def adapted(model: PreTrainedModel, folder: Path, *, seed: int = 1, **config: Any) -> PeftModel:
    """A saved adapter whose weights are all drawn at random."""
    torch.manual_seed(seed)  # PEFT draws A
    wrapped = get_peft_model(model, LoraConfig(**({"r": 3, "lora_alpha": 5} | config)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if weight.requires_grad:
                noise = torch.randn(weight.shape, generator=generator)
                scale = 0.3 if "magnitude" in name else 0.05
                weight.add_(noise.to(weight.dtype), alpha=scale)
    wrapped.save_pretrained(folder)
    assert isinstance(wrapped, PeftModel)
    return wrapped
