"""A plan as an untrained adapter's configuration, for PEFT and whatever takes a LoraConfig."""

from __future__ import annotations

import json
from collections.abc import Iterator

from hlscore.exporters.adapter_config import skip_modules
from hlscore.exporters.exporter import Export, Exporter
from hlscore.exporters.limits import PEFT_LIMITS
from hlscore.inputs.hub import ADAPTER_CONFIG


def _remarks(export: Export) -> Iterator[str]:
    if export.plan.memory.base_bits != 16:
        yield (
            "Load the quantized base model with llm_int8_skip_modules="
            f"{json.dumps(skip_modules(export.plan))}, also when the adapter is loaded again."
        )
    if export.plan.full:
        yield "Merge before serving: vLLM rejects adapters with modules in full."


EXPORTER = Exporter(
    name="peft",
    summary="adapter_config.json: the whole plan, for PEFT and whatever takes a LoraConfig",
    limits=PEFT_LIMITS,
    files=lambda export: {ADAPTER_CONFIG: export.adapter_text},
    folder=True,
    upcasts=False,
    rates=0,
    usage="get_peft_model(model, LoraConfig.from_pretrained('{out}'))",
    remarks=_remarks,
)
