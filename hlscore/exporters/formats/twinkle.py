"""A plan as an allocation file of twinkle's hybrid LoRA."""

from __future__ import annotations

import json

from hlscore.artifacts.plan import Plan
from hlscore.exporters.adapter_config import default_alpha, modules_to_save, target_modules
from hlscore.exporters.exporter import Exporter, ExportSettings, experimental, origin
from hlscore.exporters.limits import Limits
from hlscore.planning.revision import default_rank

_LIMITS = Limits(
    trainer="twinkle",
    ranks=False,
    parameters=False,
    only_full=False,
    only_lora=False,
    packs=(8, 4),
    unties=True,
)


def _files(plan: Plan, settings: ExportSettings) -> dict[str, str]:
    fields = {
        "method": "spectral_hybrid_lora",
        "model_id": settings.base(plan),
        "s_fft": modules_to_save(plan),
        "s_lora": target_modules(plan),
        "r": default_rank(plan),
        "lora_alpha": default_alpha(plan),
        "lora_dropout": 0.0,
        # Twinkle ignores this key.
        "origin": [*origin(plan), experimental(_LIMITS.trainer)],
    }
    return {"twinkle.json": json.dumps(fields, indent=2, ensure_ascii=False) + "\n"}


def _notes(plan: Plan, settings: ExportSettings) -> tuple[str, ...]:
    full, lora = settings.rates(plan)
    return (
        f"The file has no learning rates. Give --spectral-lr-fft {full:g} and --spectral-lr-lora "
        f"{lora:g}; without them twinkle uses its own defaults.",
        "The hybrid service reads only s_fft: there the client's target_modules decide what has "
        "LoRA, and what the plan freezes may get it too.",
    )


EXPORTER = Exporter(
    name="twinkle",
    summary="twinkle.json: full and LoRA modules of one rank, an allocation of twinkle",
    limits=_LIMITS,
    files=_files,
    usage="torchrun spectral_hybrid_lora.py --spectral-config {out}",
    notes=_notes,
    experimental=True,
)
