"""Makes what the trainers get: tiny models, data, plans, and the plans as exported."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from plans import plan_for

import hlscore
from hlscore.artifacts.files import write_files
from hlscore.artifacts.plan_file import plan_text
from hlscore.exporters.exporter import Export, find_exporter
from hlscore.exporters.limits import check_limits

# Two digits in the numbers of layers: `layers.1` must not hit `layers.10`.
LAYERS = 11
LOCKS = ("*.1.mlp.down_proj=full", "*.2.self_attn.v_proj=full", "*.10.*=frozen", "*.0.*=frozen")

# Far apart, so that the steps of full modules show which of the two they were made with.
FULL_LR, LORA_LR = 1e-3, 1e-2

SIZES: dict[str, Any] = {
    "vocab_size": 768, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 1, "dtype": "float32",
}  # fmt: skip
MODELS = {
    "llama": LlamaConfig(num_hidden_layers=LAYERS, **SIZES),
    "mixtral": MixtralConfig(
        num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=4, **SIZES
    ),
}

# Per plan its model and modes, who gets it in which format, and what the table calls it.
PLANS = {
    "hybrid": (
        "llama", LOCKS, ("axolotl", "llama-factory", "ms-swift"), "2 full, 61 LoRA, 14 frozen"
    ),
    "ranks": (
        "llama", (*LOCKS, "*q_proj=rank:2", "*.5.mlp.*=rank:8"), ("axolotl", "seed-adapter"),
        "2 full, 63 LoRA of ranks 2, 4, 8, 12 frozen",
    ),
    "full": (
        "llama", ("*=frozen", LOCKS[0], LOCKS[1]), ("axolotl", "ms-swift", "seed-adapter"),
        "2 full, 75 frozen",
    ),
    "lora": (
        "llama", ("*.1.*=frozen",), ("axolotl", "llama-factory", "ms-swift"), "70 LoRA, 7 frozen"
    ),
    # Routers and fused experts, which PEFT finds by parameter.
    "experts": (
        "mixtral", ("*.0.mlp.experts*=full",), ("axolotl", "ms-swift", "seed-adapter"),
        "Mixtral: experts of one layer full, the rest LoRA",
    ),
}  # fmt: skip


def make(folder: Path) -> None:
    """Write everything into a new folder."""
    folder.mkdir(parents=True)
    models = {name: _model(name, folder / f"model-{name}") for name in MODELS}
    _data(folder)
    for name, (model, locks, formats, _) in PLANS.items():
        plan = plan_for(models[model], locks, str(folder / f"model-{model}"), rank=4)
        where = folder / name
        where.mkdir()
        (where / "plan.json").write_text(plan_text(plan))
        for fmt in formats:
            exporter = find_exporter(fmt)
            check_limits(plan, exporter.limits)
            files = exporter.files(Export(plan=plan, full_lr=FULL_LR, lora_lr=LORA_LR))
            write_files(where / fmt if exporter.folder else where, files)


def _model(name: str, folder: Path) -> PreTrainedModel:
    builtin = Path(hlscore.__file__).parent / "inputs" / "builtin" / "tiny"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name])
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(builtin / file, folder / file)
    return model


def _data(folder: Path) -> None:
    turns = [("What is low rank?", "A product of two thin matrices."),
             ("What is full?", "Every number of the matrix is free to move.")]  # fmt: skip
    rows = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": reply}]}
        for ask, reply in turns * 8
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "data.jsonl").write_text(lines)
    columns = {"messages": "messages"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user",
            "assistant_tag": "assistant", "system_tag": "system"}  # fmt: skip
    entry = {"file_name": "data.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags}
    (folder / "dataset_info.json").write_text(json.dumps({"tiny": entry}))
