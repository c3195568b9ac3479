"""Two steps with ms-swift from one exported file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from outcome import run

CPU = {
    "torch_dtype": "float32", "max_steps": 2, "max_length": 128, "logging_steps": 1,
    "report_to": "none", "use_cpu": True, "template": "default",
    "add_version": False, "split_dataset_ratio": 0, "save_steps": 2, "dataset_num_proc": 1,
    "dataloader_num_workers": 0, "gradient_checkpointing": False,
}  # fmt: skip


def train(fields: dict[str, Any], material: Path, out: Path) -> None:
    """Read the file as `swift sft FILE` does, see that no argument is left over, and train."""
    from swift.arguments import SftArguments
    from swift.cli.main import parse_yaml_args
    from swift.utils import parse_args

    seed = fields.pop("seed", None)
    if seed:
        fields |= {"adapters": [seed]}
    config_of = json.loads((Path(fields["model"]) / "config.json").read_text())
    fields["model_type"] = config_of["model_type"]
    data = {"dataset": [str(material / "data.jsonl")], "output_dir": str(out.with_suffix(".runs"))}
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({**fields, **CPU, **data}, sort_keys=False))
    argv = [str(config)]
    parse_yaml_args(argv)
    _, left = parse_args(SftArguments, argv)
    assert not left, f"ms-swift does not know {left}"

    from swift.pipelines import sft_main

    sft_main(argv)
    (saved,) = out.with_suffix(".runs").rglob("checkpoint-2")
    saved.rename(out)


if __name__ == "__main__":
    run(sys.argv[1:], "ms-swift", train)
