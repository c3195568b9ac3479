"""Two steps with LLaMA-Factory from one exported file."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from outcome import run

CPU = {
    "bf16": False, "max_steps": 2, "template": "default", "dataset": "tiny", "cutoff_len": 128,
    "report_to": "none", "use_cpu": True, "logging_steps": 1, "overwrite_cache": True,
}  # fmt: skip


def train(fields: dict[str, Any], material: Path, out: Path) -> None:
    """Load the arguments with LLaMA-Factory's own classes, which refuse unknown ones, and train."""
    _stand_in("torchaudio")
    from llamafactory.hparams import get_train_args

    seed = fields.pop("seed", None)
    if seed:
        fields |= {"adapter_name_or_path": seed}
    cpu = {**CPU, "dataset_dir": str(material), "output_dir": str(out)}
    get_train_args({**fields, **cpu})

    from llamafactory.train.tuner import run_exp

    run_exp({**fields, **cpu})


def _stand_in(name: str) -> None:
    """LLaMA-Factory imports torchaudio for audio only, and there is none for this torch on CPU."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    sys.modules.setdefault(name, module)


if __name__ == "__main__":
    run(sys.argv[1:], "llamafactory", train)
