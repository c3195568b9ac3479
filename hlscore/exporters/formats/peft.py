"""A plan as an untrained adapter's configuration, for PEFT and whatever takes a LoraConfig."""

from __future__ import annotations

import json

from hlscore.artifacts.plan import Plan
from hlscore.exporters.adapter_config import adapter_config, config_text, skip_modules
from hlscore.exporters.exporter import Exporter, ExportSettings
from hlscore.exporters.limits import PEFT_LIMITS


def _files(plan: Plan, settings: ExportSettings) -> dict[str, str]:
    config = adapter_config(plan, settings.base(plan))
    return {"adapter_config.json": config_text(config)}


def _notes(plan: Plan, settings: ExportSettings) -> tuple[str, ...]:  # noqa: ARG001
    found = []
    if plan.full and plan.memory.master == "fp32":
        found.append(
            "PEFT leaves full copies of a 16-bit model in 16 bits, where small updates are lost: "
            "load the base model in float32, or wrap it with hlscore.training.apply."
        )
    if plan.memory.base_bits != 16:
        found.append(
            "Load the quantized base model with llm_int8_skip_modules="
            f"{json.dumps(skip_modules(plan))}, also when the adapter is loaded again."
        )
    if plan.full:
        found.append("Merge before serving: vLLM rejects adapters with modules in full.")
    return tuple(found)


EXPORTER = Exporter(
    name="peft",
    summary="adapter_config.json: the whole plan, for PEFT and whatever takes a LoraConfig",
    limits=PEFT_LIMITS,
    files=_files,
    folder=True,
    usage="get_peft_model(model, LoraConfig.from_pretrained('{out}'))",
    notes=_notes,
    rates=False,
)
