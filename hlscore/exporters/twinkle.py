"""A plan as an allocation file of twinkle's hybrid LoRA."""

from __future__ import annotations

import json

from hlscore.artifacts.plan import Plan
from hlscore.exporters.formats import Exporter, ExportSettings, Writer, origin, text_file
from hlscore.exporters.hf_training import refuse_packed, refuse_tied
from hlscore.exporters.limits import ExportError, Limits
from hlscore.exporters.peft import default_alpha, modules_to_save, target_modules
from hlscore.exporters.revision import default_rank

_TRAINER = "twinkle"


def twinkle_fields(plan: Plan, settings: ExportSettings) -> dict[str, object]:
    """The fields of an allocation file.

    Args:
        plan: A plan within the limits of twinkle.
        settings: Base model.

    Returns:
        The fields; twinkle passes over `origin`.

    Raises:
        ExportError: A module is in both lists, or nothing has LoRA.
    """
    full, lora = modules_to_save(plan), target_modules(plan)
    both = sorted(set(full) & set(lora))
    if both or not lora:
        what = f"'{both[0]}' is in both lists" if both else "nothing has LoRA"
        raise ExportError(f"twinkle cannot run this plan: {what}.", hint="Plan again.")
    return {
        "method": "spectral_hybrid_lora",
        "model_id": settings.base(plan),
        "s_fft": full,
        "s_lora": lora,
        "r": default_rank(plan),
        "lora_alpha": default_alpha(plan),
        "lora_dropout": 0.0,
        "origin": list(origin(plan)),
    }


def _files(plan: Plan, settings: ExportSettings) -> dict[str, Writer]:
    refuse_packed(plan, _TRAINER)
    refuse_tied(plan, _TRAINER)
    text = json.dumps(twinkle_fields(plan, settings), indent=2, ensure_ascii=False) + "\n"
    return {"twinkle.json": text_file(text)}


def _notes(plan: Plan, settings: ExportSettings) -> tuple[str, ...]:
    full, lora = settings.rates(plan)
    return (
        f"The file has no learning rates. Give --spectral-lr-fft {full:g} and --spectral-lr-lora "
        f"{lora:g}; twinkle takes its own defaults without them.",
        "The hybrid service reads only s_fft: there the client's target_modules decide what has "
        "LoRA, and what the plan freezes may get it too.",
    )


EXPORTER = Exporter(
    name="twinkle",
    summary="twinkle.json: full and LoRA modules of one rank, an allocation of twinkle",
    limits=Limits(
        trainer=_TRAINER, ranks=False, parameters=False, only_full=False, only_lora=False
    ),
    files=_files,
    usage="torchrun spectral_hybrid_lora.py --spectral-config {out}",
    notes=_notes,
)
