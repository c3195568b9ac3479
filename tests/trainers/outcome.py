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
    rate = fields.get("embedding_lr", fields["learning_rate"])
    train(as_seeded(fields, seed), folder, out)
    plan = json.loads((folder / plan_name / "plan.json").read_text())
    planned = {item["parameter"] for item in plan["modules"] if item["mode"] != "frozen"}
    steps = largest_steps(Path(plan["model"]["name"]), out)
    found = {name for name, step in steps.items() if step}
    data: dict[str, Any] = {
        "trainer": f"{package} {version(package)}",
        "versions": {name: version(name) for name in LIBRARIES},
        "planned": len(planned),
        "changed": len(found),
        "faults": [*sorted(found ^ planned), *wrong_ranks(plan, out)],
    }
    data["faults"] += wrong_steps(plan, steps, rate)
    target.write_text(json.dumps(data, indent=1))


def as_seeded(fields: dict[str, Any], seed: str) -> dict[str, Any]:
    """Take the adapter's keys out where training starts from a seed adapter, which has them."""
    if not seed:
        return fields
    left_out = ("lora_", "target_", "modules_to_save", "additional_target")
    kept = {key: value for key, value in fields.items() if not key.startswith(left_out)}
    return {**kept, "seed": seed}


def largest_steps(base: Path, adapter: Path) -> dict[str, float]:
    """How far the trained adapter moves each parameter of the base model at most."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    after = dict(merged.named_parameters())
    assert after.keys() == before.keys(), sorted(after.keys() ^ before.keys())[:5]
    return {name: float((value - after[name]).abs().max()) for name, value in before.items()}


def wrong_steps(plan: dict[str, Any], steps: dict[str, float], rate: float) -> list[str]:
    """Full modules that were not trained at their rate, as two steps of Adam show."""
    return [
        f"{item['module']}: moved {steps[item['parameter']]:.1e} at a rate of {rate:.1e}"
        for item in plan["modules"]
        # Axolotl trains experts at the rate of LoRA, as its exporter says.
        if item["mode"] == "full" and item["form"] == "linear"
        and not 0.5 * rate < steps[item["parameter"]] < 2.1 * rate
    ]  # fmt: skip


def wrong_ranks(plan: dict[str, Any], adapter: Path) -> list[str]:
    """Linear layers whose adapter does not have the rank of the plan, with the rank it has."""
    from safetensors.torch import load_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    wrong = []
    for item in plan["modules"]:
        if item["form"] != "linear":
            continue
        matrix = tensors.get(f"base_model.model.{item['module']}.lora_A.weight")
        rank = None if matrix is None else matrix.shape[0]
        if rank != item["rank"]:
            wrong.append(f"{item['module']}: {rank}, not {item['rank']}")
    return wrong
