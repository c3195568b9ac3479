"""Scripts of benchmarks/, imported for a test module as they import each other, then forgotten."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def part(name: str) -> ModuleType:
    """A script as a module."""
    return importlib.import_module(name)


def scripts_in(folder: Path) -> Callable[[], Iterator[None]]:
    """A fixture, for a whole test module, under which `part` finds the scripts of a folder."""

    @pytest.fixture(scope="module", autouse=True)
    def path() -> Iterator[None]:
        before = set(sys.modules)
        places = list(sys.path)
        sys.path.insert(0, str(folder))
        yield
        sys.path[:] = places
        for name in set(sys.modules) - before:
            if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
                sys.modules.pop(name)

    return path


def tiny_llama(vocab_size: int) -> LlamaForCausalLM:
    """A model of two blocks, the same each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        tie_word_embeddings=True, attn_implementation="eager", initializer_range=0.2,
        use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def with_lora(model: LlamaForCausalLM, **options: Any) -> peft.PeftModel:
    """Adapters of rank 2 on all linear layers, the same each time."""
    config = peft.LoraConfig(r=2, target_modules="all-linear", **options)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return peft.get_peft_model(model, config)


def plain_training(
    model: Any, rate_of: Callable[[str], float], losses: Iterable[torch.Tensor], steps: int,
    warm: float,
) -> list[float]:  # fmt: skip
    """Train by the rules of the studies: AdamW, clipping at 1, warm-up, linear decay.

    Args:
        rate_of: Peak learning rate of a parameter by name.
        losses: Loss of each step, computed when it is asked for.
        warm: Share of the steps over which the rates rise.

    Returns:
        Loss of each step.
    """
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    groups = [{"params": [value], "lr": rate_of(name)} for name, value in named.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    peaks = [group["lr"] for group in optimizer.param_groups]
    curve = []
    for step, loss in enumerate(losses, 1):
        factor = min(step / (warm * steps), (steps + 1 - step) / (steps - warm * steps), 1.0)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = factor * peak
        curve.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        optimizer.step()
    assert len(curve) == steps
    return curve
