"""A whole plan as a Python script for Unsloth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pprint import pformat
from string import Template

from hlscore.exporters.exporter import FILL_IN, Export, Exporter
from hlscore.exporters.limits import Limits

_TEMPLATE = Path(__file__).with_name("unsloth_train.py.txt")
_TO_DO = (f"Fill in {FILL_IN}: the data set, with a column `text` or `messages`.",)


def _files(export: Export) -> dict[str, str]:
    plan, adapter = export.plan, export.adapter
    full_rate, lora_rate = export.rates()
    values: dict[str, object] = {
        "model": export.base,
        "revision": adapter["revision"],
        "dataset": FILL_IN,
        "lora": adapter["target_modules"],
        "parameters": adapter["target_parameters"] or [],
        "full": adapter["modules_to_save"] or [],
        "ranks": adapter["rank_pattern"],
        "alphas": adapter["alpha_pattern"],
        "length": plan.memory.train_length,
        "four": plan.memory.base_bits == 4,
        "eight": plan.memory.base_bits == 8,
        "rank": adapter["r"],
        "alpha": adapter["lora_alpha"],
        "tying": adapter["ensure_weight_tying"],
        "lora_rate": lora_rate,
        "full_rate": full_rate if plan.full else None,
        "optimizer": export.optimizer["optim"],
        "optimizer_args": export.optimizer["optim_args"],
        "batch": plan.memory.train_batch,
    }
    literals = {name: pformat(value, width=100) for name, value in values.items()}
    script = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(literals)
    return {"unsloth_train.py": f"{EXPORTER.heading(plan, _TO_DO)}\n{script}"}


def _remarks(export: Export) -> Iterator[str]:
    yield (
        "FastModel only: on a GPU FastLanguageModel trains no other full modules than lm_head and "
        "embed_tokens."
    )
    if export.counts_assistant_only:
        yield (
            "The probes counted the assistant's tokens alone: call "
            "unsloth.chat_templates.train_on_responses_only on the trainer."
        )


EXPORTER = Exporter(
    name="unsloth",
    summary="unsloth_train.py: the whole plan with ranks and both learning rates, a script for "
    "Unsloth's FastModel",
    limits=Limits(trainer="Unsloth", only_full=False, packs=(8, 4)),
    files=_files,
    methods=("sft",), upcasts=False, optimizer=True, experimental=True,
    usage="python {out}",
    remarks=_remarks,
)  # fmt: skip
