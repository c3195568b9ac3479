"""A plan as an allocation file of twinkle's hybrid LoRA."""

from __future__ import annotations

import json

from hlscore.exporters.exporter import Export, Exporter
from hlscore.exporters.limits import Limits


def _files(export: Export) -> dict[str, str]:
    adapter = export.adapter
    fields = {
        "method": "spectral_hybrid_lora",
        "model_id": export.base,
        "s_fft": adapter["modules_to_save"],
        "s_lora": adapter["target_modules"],
        "r": adapter["r"],
        "lora_alpha": adapter["lora_alpha"],
        "lora_dropout": adapter["lora_dropout"],
        # Twinkle ignores this key.
        "origin": EXPORTER.origin(export.plan),
    }
    return {"twinkle.json": json.dumps(fields, indent=2, ensure_ascii=False) + "\n"}


def _remarks(export: Export) -> tuple[str, ...]:
    full, lora = export.rates()
    return (
        f"The file has no learning rates. Give --spectral-lr-fft {full:g} and --spectral-lr-lora "
        f"{lora:g}; without them twinkle uses its own defaults.",
        "The hybrid service reads only s_fft: there the client's target_modules decide what has "
        "LoRA, and what the plan freezes may get it too.",
    )


EXPORTER = Exporter(
    name="twinkle",
    summary="twinkle.json: full and LoRA modules of one rank, an allocation of twinkle",
    limits=Limits(
        trainer="twinkle", ranks=False, parameters=False, only_full=False, only_lora=False,
        packs=(8, 4), unties=True,
    ),
    files=_files,
    experimental=True,
    usage="torchrun spectral_hybrid_lora.py --spectral-config {out}",
    remarks=_remarks,
)  # fmt: skip
