"""Two steps with axolotl from one exported file."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from outcome import run

CPU = {
    "bf16": False, "fp16": False, "tf32": False, "max_steps": 2, "gradient_checkpointing": False,
    "sequence_len": 128, "save_safetensors": True, "val_set_size": 0, "logging_steps": 1,
    "special_tokens": {"pad_token": "<|pad|>"}, "attn_implementation": "eager",
    "dataset_processes": 1, "dataloader_num_workers": 0, "warmup_steps": 0,
    "lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False,
}  # fmt: skip


def train(fields: dict[str, Any], material: Path, out: Path) -> None:
    """Load the configuration with axolotl's own classes, see that nothing is lost, train."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    seed = fields.pop("seed", None)
    if seed:
        fields |= {"lora_model_dir": seed}
    fields["datasets"] = [{"path": str(material / "data.jsonl"), "type": "chat_template"}]
    kept = AxolotlInputConfig(**deepcopy(fields)).model_dump(exclude_unset=True)
    lost = {key for key, value in fields.items() if key != "datasets" and kept.get(key) != value}
    assert not lost, f"axolotl drops or changes {sorted(lost)}"
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({**fields, **CPU, "output_dir": str(out)}))

    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train as axolotl_train

    cfg = load_cfg(str(config))
    from axolotl.cli.args import TrainerCliArgs

    axolotl_train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg, cli_args=TrainerCliArgs()))


if __name__ == "__main__":
    run(sys.argv[1:], "axolotl", train)
