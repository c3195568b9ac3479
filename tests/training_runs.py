"""Short trainings of wrapped models and what they changed; weights moved at random instead."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, token_batch
from peft import LoraConfig, PeftModel, get_peft_model
from plans import plan_for, report_for
from torch import nn
from transformers import PreTrainedModel

from hlscore.artifacts.plan import Plan
from hlscore.inputs.model import LoadedModel, load_model
from hlscore.settings import ModelSettings

_PROBES = resources.files("hlscore.inputs") / "builtin" / "probes.jsonl"
ROWS: list[dict[str, str]] = [json.loads(line) for line in _PROBES.read_text().splitlines()[:8]]
PAIRS = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "I do not know."}
    for row in ROWS
]
# Options of a short run of TRL's scripts.
QUICK = (
    "--max_steps", "2", "--use_cpu", "--report_to", "none", "--logging_steps", "1",
    "--save_strategy", "no", "--disable_tqdm", "true",
)  # fmt: skip


@functools.cache
def two_blocks() -> LoadedModel:
    """The trained tiny model with its first two blocks only; not to be changed."""
    found = load_model(ModelSettings(model="builtin:tiny"))
    found.model.model.layers = found.model.model.layers[:2]
    found.model.config.num_hidden_layers = 2
    return found


def python(*command: object, **environment: str) -> str:
    """What a Python process prints that must succeed."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def train(model: PeftModel, steps: int = 2, lr: float = 1e-2, **batch: Any) -> None:
    """Trains whatever is trainable for a few steps of AdamW on random tokens."""
    parameters = [item for item in model.parameters() if item.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    inputs = token_batch(**batch)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        optimizer.step()
    model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    """The logits of fixed tokens."""
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**token_batch(seed=5), use_cache=False).logits.float()
    return found


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers by name, tied ones under every name."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


def changed(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that are not bit for bit the same."""
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def planned(plan: Plan, model: nn.Module) -> set[str]:
    """Names of the tensors of the base model that a plan changes, biases of full modules too."""
    names = {item.parameter for item in plan.modules if item.mode != "frozen"}
    for item in plan.full:
        holder = item.parameter.rpartition(".")[0]
        own = model.get_submodule(holder).named_parameters(recurse=False)
        names |= {f"{holder}.{leaf}" for leaf, value in own if value.dim() < 3}
    return names


def planned_model(
    family: str, locks: Sequence[str] | None = None, **settings: Any
) -> tuple[PreTrainedModel, Plan]:
    """A model of a family and its plan, with all modes in turn where no locks are given."""
    model = FAMILIES[family].build()
    return model, plan_for(model, every_mode(model) if locks is None else locks, **settings)


def every_mode(model: PreTrainedModel, *, left: Sequence[str] = ()) -> list[str]:
    """Locks that give the modules of a model all modes and several ranks in turn.

    Kinds in `left` cannot have LoRA: these are trained in full instead. The first module of fused
    experts is trained in full, the others get LoRA.
    """
    rows = report_for(model).candidates
    locks = []
    for place, row in enumerate(row for row in rows if row.form != "experts"):
        mode = ("full", "rank:4", "rank:2", "frozen", "rank:1")[place % 5]
        refused = row.kind in left and mode.startswith("rank")
        locks.append(f"{row.module}={'full' if refused else mode}")
    holders = sorted({row.module.rpartition(".")[0] for row in rows if row.form == "experts"})
    for place, holder in enumerate(holders):
        locks += (
            [f"{holder}.*=full"]
            if place == 0
            else [f"{holder}.gate_up_proj=rank:2", f"{holder}.down_proj=rank:1"]
        )
    return locks


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
