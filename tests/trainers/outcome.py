"""What a trainer changed, held against the plan. Runs in the environment of each trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate")


def run(argv: list[str], package: str, train: Callable[[dict[str, Any], Path, Path], None]) -> None:
    """Train from one exported file and write what came out.

    Args:
        argv: Folder of the material, plan, file of its configuration, path of the adapter to start
            from or an empty string, file to write.
        package: Name of the trainer's distribution.
        train: Trains two steps with a configuration; gets the folder of the material and the one
            to save the adapter in.
    """
    material, plan_name, config, seed, result = argv
    folder, target = Path(material), Path(result)
    fields = yaml.safe_load((folder / config).read_text())
    out = target.with_suffix("")
    train(as_seeded(fields, seed), folder, out)
    plan = json.loads((folder / plan_name / "plan.json").read_text())
    planned = {item["parameter"] for item in plan["modules"] if item["mode"] != "frozen"}
    found = changed(folder / "model", out)
    data = {
        "trainer": f"{package} {version(package)}",
        "versions": {name: version(name) for name in LIBRARIES},
        "planned": len(planned),
        "changed": len(found),
        "difference": sorted(found ^ planned),
        "ranks": wrong_ranks(plan, out),
    }
    target.write_text(json.dumps(data, indent=1))


def as_seeded(fields: dict[str, Any], seed: str) -> dict[str, Any]:
    """Take the adapter's keys out where training starts from a seed adapter, which has them."""
    if not seed:
        return fields
    left_out = ("lora_", "target_", "modules_to_save", "additional_target")
    kept = {key: value for key, value in fields.items() if not key.startswith(left_out)}
    return {**kept, "seed": seed}


def changed(base: Path, adapter: Path) -> set[str]:
    """Names of the parameters of the base model that the trained adapter changes."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.named_parameters()}
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    after = dict(merged.named_parameters())
    assert after.keys() == before.keys(), sorted(after.keys() ^ before.keys())[:5]
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def wrong_ranks(plan: dict[str, Any], adapter: Path) -> list[str]:
    """Modules whose adapter does not have the rank of the plan, with the rank it has."""
    from safetensors.torch import load_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    wrong = []
    for item in plan["modules"]:
        matrix = tensors.get(f"base_model.model.{item['module']}.lora_A.weight")
        rank = None if matrix is None else matrix.shape[0]
        if rank != item["rank"]:
            wrong.append(f"{item['module']}: {rank}, not {item['rank']}")
    return wrong
