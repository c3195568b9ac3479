"""Two steps with a real trainer from one exported file, and what they changed, against the plan.

Runs in the environment of each trainer. Arguments: trainer, folder of the material, plan, file of
its configuration, path of the adapter to start from or an empty string, file to write.
"""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate")

# What is changed of each configuration to train two steps of a tiny model without a GPU.
AXOLOTL = {
    "bf16": False, "fp16": False, "tf32": False, "max_steps": 2, "gradient_checkpointing": False,
    "sequence_len": 128, "save_safetensors": True, "val_set_size": 0, "logging_steps": 1,
    "special_tokens": {"pad_token": "<|pad|>"}, "attn_implementation": "eager",
    "dataset_processes": 1, "dataloader_num_workers": 0, "warmup_steps": 0,
    "lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False,
}  # fmt: skip
LLAMA_FACTORY = {
    "bf16": False, "max_steps": 2, "template": "default", "dataset": "tiny", "cutoff_len": 128,
    "report_to": "none", "use_cpu": True, "logging_steps": 1, "overwrite_cache": True,
}  # fmt: skip
MS_SWIFT = {
    "torch_dtype": "float32", "max_steps": 2, "max_length": 128, "logging_steps": 1,
    "report_to": "none", "use_cpu": True, "template": "default",
    "add_version": False, "split_dataset_ratio": 0, "save_steps": 2, "dataset_num_proc": 1,
    "dataloader_num_workers": 0, "gradient_checkpointing": False,
}  # fmt: skip


def axolotl(fields: dict[str, Any], seed: str, material: Path, out: Path) -> None:
    """Load the configuration with axolotl's own classes, see that nothing is lost, train."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    if seed:
        fields["lora_model_dir"] = seed
    fields["datasets"] = [{"path": str(material / "data.jsonl"), "type": "chat_template"}]
    kept = AxolotlInputConfig(**deepcopy(fields)).model_dump(exclude_unset=True)
    lost = {key for key, value in fields.items() if key != "datasets" and kept.get(key) != value}
    assert not lost, f"axolotl drops or changes {sorted(lost)}"
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({**fields, **AXOLOTL, "output_dir": str(out)}))

    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train

    cfg = load_cfg(str(config))
    from axolotl.cli.args import TrainerCliArgs

    train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg, cli_args=TrainerCliArgs()))


def llama_factory(fields: dict[str, Any], seed: str, material: Path, out: Path) -> None:
    """Load the arguments with LLaMA-Factory's own classes, which refuse unknown ones, and train."""
    # It imports torchaudio for audio only, and there is none for this torch on CPU.
    audio = ModuleType("torchaudio")
    audio.__spec__ = ModuleSpec("torchaudio", None)
    sys.modules.setdefault("torchaudio", audio)
    from llamafactory.hparams import get_train_args

    if seed:
        fields["adapter_name_or_path"] = seed
    fields |= {**LLAMA_FACTORY, "dataset_dir": str(material), "output_dir": str(out)}
    get_train_args(dict(fields))

    from llamafactory.train.tuner import run_exp

    run_exp(dict(fields))


def ms_swift(fields: dict[str, Any], seed: str, material: Path, out: Path) -> None:
    """Read the file as `swift sft FILE` does, see that no argument is left over, and train."""
    from swift.arguments import SftArguments
    from swift.cli.main import parse_yaml_args
    from swift.utils import parse_args

    if seed:
        fields["adapters"] = [seed]
    config_of = json.loads((Path(fields["model"]) / "config.json").read_text())
    fields["model_type"] = config_of["model_type"]
    data = {"dataset": [str(material / "data.jsonl")], "output_dir": str(out.with_suffix(".runs"))}
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({**fields, **MS_SWIFT, **data}, sort_keys=False))
    argv = [str(config)]
    parse_yaml_args(argv)
    _, left = parse_args(SftArguments, argv)
    assert not left, f"ms-swift does not know {left}"

    from swift.pipelines import sft_main

    sft_main(argv)
    (saved,) = out.with_suffix(".runs").rglob("checkpoint-2")
    saved.rename(out)


# The distribution of each trainer, and two steps with it.
TRAINERS = {
    "axolotl": ("axolotl", axolotl),
    "llama_factory": ("llamafactory", llama_factory),
    "ms_swift": ("ms-swift", ms_swift),
}


def main(trainer: str, material: str, plan_name: str, config: str, seed: str, result: str) -> None:
    """Train from one exported file and write what came out."""
    folder, target = Path(material), Path(result)
    fields = yaml.safe_load((folder / config).read_text())
    rate = fields.get("embedding_lr", fields["learning_rate"])
    if seed:  # the adapter has what these keys say
        carried = ("lora_", "target_", "modules_to_save", "additional_target")
        fields = {key: value for key, value in fields.items() if not key.startswith(carried)}
    package, train = TRAINERS[trainer]
    adapter = target.with_suffix("")
    train(fields, seed, folder, adapter)

    plan = json.loads((folder / plan_name / "plan.json").read_text())
    planned = {item["parameter"] for item in plan["modules"] if item["mode"] != "frozen"}
    steps = largest_steps(Path(plan["model"]["name"]), adapter)
    changed = {name for name, step in steps.items() if step}
    faults = sorted(changed ^ planned)
    tensors = load_file(adapter / "adapter_model.safetensors")
    for item in (item for item in plan["modules"] if item["form"] == "linear"):
        matrix = tensors.get(f"base_model.model.{item['module']}.lora_A.weight")
        rank = None if matrix is None else matrix.shape[0]
        if rank != item["rank"]:
            faults.append(f"{item['module']}: {rank}, not {item['rank']}")
        # Two steps of Adam show the rate of a full module. Axolotl trains experts at the rate of
        # LoRA, as its exporter says.
        step = steps[item["parameter"]]
        if item["mode"] == "full" and not 0.5 * rate < step < 2.1 * rate:
            faults.append(f"{item['module']}: moved {step:.1e} at a rate of {rate:.1e}")
    data = {
        "trainer": f"{package} {version(package)}",
        "versions": {name: version(name) for name in LIBRARIES},
        "planned": len(planned),
        "changed": len(changed),
        "faults": faults,
    }
    target.write_text(json.dumps(data, indent=1))


def largest_steps(base: Path, adapter: Path) -> dict[str, float]:
    """How far the trained adapter moves each parameter of the base model at most."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    after = dict(merged.named_parameters())
    assert after.keys() == before.keys(), sorted(after.keys() ^ before.keys())[:5]
    return {name: float((value - after[name]).abs().max()) for name, value in before.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
