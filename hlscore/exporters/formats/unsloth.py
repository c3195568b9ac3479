"""A whole plan as a Python script for Unsloth."""

from __future__ import annotations

from pathlib import Path
from pprint import pformat
from string import Template

from hlscore.artifacts.plan import Plan
from hlscore.exporters import hf_training as hf
from hlscore.exporters.adapter_config import adapter_config
from hlscore.exporters.exporter import (
    FILL_IN,
    Exporter,
    ExportSettings,
    comment,
    experimental,
    origin,
)
from hlscore.exporters.limits import Limits

_LIMITS = Limits(trainer="Unsloth", only_full=False, packs=(8, 4))

_TO_DO = (
    experimental(_LIMITS.trainer),
    "",
    f"Fill in {FILL_IN}: the data set, with a column `text` or `messages`.",
)

_TEMPLATE = Path(__file__).with_name("unsloth_train.py.txt")


def _files(plan: Plan, settings: ExportSettings) -> dict[str, str]:
    config = adapter_config(plan)
    full_rate, lora_rate = settings.rates(plan)
    values: dict[str, object] = {
        "model": settings.base(plan),
        "revision": settings.revision(plan),
        "dataset": FILL_IN,
        "lora": config["target_modules"],
        "parameters": config["target_parameters"] or [],
        "full": config["modules_to_save"] or [],
        "ranks": config["rank_pattern"],
        "alphas": config["alpha_pattern"],
        "length": plan.memory.train_length,
        "four": plan.memory.base_bits == 4,
        "eight": plan.memory.base_bits == 8,
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "tying": config["ensure_weight_tying"],
        "lora_rate": lora_rate,
        "full_rate": full_rate if plan.full else None,
        "optimizer": hf.optimizer_name(plan),
        "optimizer_args": hf.optimizer_args(plan),
        "batch": plan.memory.train_batch,
    }
    literals = {name: pformat(value, width=100) for name, value in values.items()}
    script = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(literals)
    return {"unsloth_train.py": f"{comment((*origin(plan), *_TO_DO))}\n{script}"}


EXPORTER = Exporter(
    name="unsloth",
    summary="unsloth_train.py: the whole plan with ranks and both learning rates, a script for "
    "Unsloth's FastModel",
    limits=_LIMITS,
    files=_files,
    methods=("sft",),
    usage="python {out}",
    notes=lambda plan, settings: (  # noqa: ARG005
        "FastModel only: on a GPU FastLanguageModel trains no other full modules than lm_head and "
        "embed_tokens.",
        *(
            (
                "The probes counted the assistant's tokens alone: call "
                "unsloth.chat_templates.train_on_responses_only on the trainer.",
            )
            if hf.counts_assistant_only(plan)
            else ()
        ),
        *hf.precision_note(plan),
        *hf.optimizer_note(plan),
    ),
    experimental=True,
)
