"""A plan as a configuration of prime-rl's supervised fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hlscore.exporters.adapter_config import pattern
from hlscore.exporters.exporter import FILL_IN, Export, Exporter
from hlscore.exporters.limits import Limits

_TO_DO = (
    f"Fill in {FILL_IN}: the data set. prime-rl takes names as regular expressions and searches",
    "for them anywhere in a name, so each is bound to its start and end.",
    "For supervised fine-tuning only: in RL the weights of full modules are not sent to the",
    "inference engine.",
)


def _files(export: Export) -> dict[str, str]:
    plan, adapter = export.plan, export.adapter
    tables: dict[str, dict[str, object]] = {
        "model": {"name": export.base},
        "model.lora": {
            "rank": adapter["r"],
            "alpha": float(adapter["lora_alpha"]),
            "dropout": adapter["lora_dropout"],
            "target_modules": [f"{pattern(name)}$" for name in adapter["target_modules"]],
            # An empty list is written too, as the default is not empty.
            "modules_to_save": [f"{pattern(name)}$" for name in adapter["modules_to_save"] or ()],
        },
        "data": {
            "name": FILL_IN,
            "seq_len": plan.memory.train_length,
            "batch_size": plan.memory.train_batch,
        },
    }
    if export.counts_whole_conversations:
        tables["data.loss_mask"] = dict.fromkeys(("system", "user", "assistant", "tool"), True)
    tables["optim"] = {"lr": export.one_rate()}
    parts = [_table(name, values) for name, values in tables.items()]
    return {"prime_rl.toml": "\n".join([EXPORTER.heading(plan, _TO_DO), *parts])}


def _table(name: str, values: Mapping[str, object]) -> str:
    """A table of TOML, whose strings, numbers, truth values and lists are those of JSON."""
    lines = [f"[{name}]\n"]
    for key, value in values.items():
        literal = json.dumps(value, ensure_ascii=False, indent=2).replace("\x7f", "\\u007f")
        lines.append(f"{key} = {literal}\n")
    return "".join(lines)


EXPORTER = Exporter(
    name="prime-rl",
    summary="prime_rl.toml: full and LoRA modules of one rank, for prime-rl's `sft`",
    limits=Limits(
        trainer="prime-rl", ranks=False, parameters=False, only_full=False, forms=("linear",),
        bits=(16,),
    ),
    files=_files,
    methods=("sft",), rates=1, experimental=True,
    usage="uv run sft @ {out}",
    remarks=lambda export: (
        ["Not for RL: prime-rl does not send full modules to the inference engine."]
        if export.plan.full else []
    ),
)  # fmt: skip
