"""Gradients of the exact estimator, and arguments of a TRL trainer that takes one plain step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from families import FAMILIES
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from hlscore.gradients.probe_run import ProbeRun
from hlscore.gradients.sketch import TestMatrices
from hlscore.gradients.sources import weight_sources
from hlscore.gradients.sums import ExactGradients
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.probes.encode import encode
from hlscore.settings import CandidateSettings, CaptureSettings, ObjectiveSettings


def captured(
    model: PreTrainedModel,
    examples: Any,
    objective: ObjectiveSettings,
    tokens: PreTrainedTokenizerFast,
    **capture: Any,
) -> dict[str, torch.Tensor]:
    """Mean gradients over both halves, by parameter."""
    probes = encode(examples, tokens, model, objective=objective, max_length=None, groups=2, seed=0)
    items = candidates_of(find_modules(model, CandidateSettings()))
    gradients = ExactGradients(items, TestMatrices(size=8, seed=0), groups=None)
    ProbeRun(
        model=model,
        probes=probes,
        gradients=gradients,
        sources=weight_sources(model, items),
        settings=CaptureSettings(**({"batch_size": 3} | capture)),
        objective=objective,
    ).run()
    counts = [sum(half) for half in probes.counts]
    found = {}
    for item in items:
        pair, _ = gradients.take(item.module, counts)
        assert pair is not None
        total = sum(part * count for part, count in zip(pair, counts, strict=True))
        found[item.parameter] = (total / sum(counts)).flatten()
    return found


def build(family: str = "qwen3") -> PreTrainedModel:
    """A tiny model without dropout in float32; TRL changes the one that it is given."""
    return FAMILIES[family].build().float()


def dpo_trainer(
    folder: Path, rows: Any, tokens: PreTrainedTokenizerFast, family: str = "qwen3", **options: Any
) -> DPOTrainer:
    return DPOTrainer(
        model=build(family),
        ref_model=build(family),
        args=DPOConfig(**{"max_length": None} | arguments(folder, **options)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokens,
    )


def arguments(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        **options,
    }
