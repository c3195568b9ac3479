"""The base models of the study, trained from nothing on the old world."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from transformers import LlamaConfig, LlamaForCausalLM
from world import BOS, EOS, IDS, PAD, WORDS, encode, old_world, pretraining_tasks, tokenizer

MODELS = Path(__file__).resolve().parent.parent / ".models"
RECORD = "training.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A size, and how long it is trained."""

    name: str  # what it is called
    width: int  # hidden size
    layers: int  # decoder blocks
    steps: int  # optimizer steps; each has a batch of every part of the old world
    rate: float = 3e-3  # peak learning rate
    seed: int = 0  # seed of its first weights and of the world that it learns


BASES = {
    base.name: base
    for base in (
        Base(name="small", width=64, layers=4, steps=2000),
        Base(name="medium", width=128, layers=4, steps=2500, rate=2e-3),
    )
}
# The small model again, from other first weights, in other worlds.
REPLICAS = {
    f"small-{seed}": replace(BASES["small"], name=f"small-{seed}", seed=seed)
    for seed in range(1, 5)
}


def load_base(name: str, *, device: str = "cpu") -> LlamaForCausalLM:
    """The trained base model; it is trained first where it is not there yet."""
    folder = MODELS / f"evidence-{name}"
    if not (folder / RECORD).exists():
        _train({**BASES, **REPLICAS}[name], folder)
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model.config.use_cache = False
    return model.to(device)


def _train(base: Base, folder: Path) -> None:
    torch.manual_seed(base.seed)
    began = time.monotonic()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=base.width, intermediate_size=2 * base.width,
            num_hidden_layers=base.layers, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=64, tie_word_embeddings=True, dtype="float32",
            bos_token_id=IDS[BOS], eos_token_id=IDS[EOS], pad_token_id=IDS[PAD],
            initializer_range=0.5 / base.width**0.5,
        )
    )  # fmt: skip
    tasks = pretraining_tasks(old_world(base.seed))
    rng = np.random.default_rng(base.seed + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=base.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, base.rate, total_steps=base.steps, pct_start=0.05
    )
    losses = {task.name: 0.0 for task in tasks}
    for _ in track(range(base.steps), f"training {base.name}", disable=not sys.stderr.isatty()):
        optimizer.zero_grad()
        for task in tasks:
            batch = encode(task.draw(rng, 2 * task.batch_size))
            loss = model(input_ids=batch.ids, labels=batch.labels).loss
            loss.backward()
            losses[task.name] += 0.05 * (loss.item() - losses[task.name])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    record = {
        "base": asdict(base),
        "parameters": sum(item.numel() for item in model.parameters()),
        "running_loss": losses,
        "floors": {task.name: task.floor for task in tasks},
        "seconds": round(time.monotonic() - began, 1),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    for known in (*BASES, *REPLICAS):
        load_base(known)
        print((MODELS / f"evidence-{known}" / RECORD).read_text())
