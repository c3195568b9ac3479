"""A plan as arguments of LLaMA-Factory."""

from __future__ import annotations

from hlscore.artifacts.plan import Plan
from hlscore.exporters import hf_training as hf
from hlscore.exporters.adapter_config import default_alpha, modules_to_save, target_modules
from hlscore.exporters.exporter import FILL_IN, Exporter, ExportSettings, yaml_text
from hlscore.exporters.limits import SEED_ADAPTER, Limits
from hlscore.planning.revision import default_rank

_LIMITS = Limits(
    trainer="LLaMA-Factory",
    ranks=False,
    parameters=False,
    only_full=False,
    packs=(8, 4),
    unties=True,
    instead=SEED_ADAPTER,
)

_TO_DO = (
    "",
    f"Fill in {FILL_IN}: the data set as named in dataset_info.json, and the chat template.",
    *hf.seed_adapter_lines(
        "LLaMA-Factory has one rank for all modules and no LoRA on parameters.",
        "adapter_name_or_path",
        "lora and target",
    ),
)


def _files(plan: Plan, settings: ExportSettings) -> dict[str, str]:
    bits = plan.memory.base_bits
    fields = {
        "model_name_or_path": settings.base(plan),
        "model_revision": settings.revision(plan),
        "quantization_bit": None if bits == 16 else bits,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": default_rank(plan),
        "lora_alpha": default_alpha(plan),
        "lora_dropout": 0.0,
        "lora_target": target_modules(plan),
        "additional_target": modules_to_save(plan),
        **hf.training_fields(plan, settings),
        "train_on_prompt": hf.counts_whole_conversations(plan) or None,
        "cutoff_len": plan.memory.train_length,
        "bf16": True,
        # Otherwise what is trained is upcast to float32.
        "pure_bf16": True if plan.memory.master == "bf16" else None,
        "dataset": FILL_IN,
        "template": FILL_IN,
        "output_dir": "./outputs",
    }
    return {"llama_factory.yaml": yaml_text(plan, _TO_DO, fields)}


EXPORTER = Exporter(
    name="llama-factory",
    summary="llama_factory.yaml: full and LoRA modules of one rank, for `llamafactory-cli train`; "
    "more ranks with the seed adapter",
    limits=_LIMITS,
    files=_files,
    methods=("sft",),
    usage="llamafactory-cli train {out}",
    notes=lambda plan, settings: (*hf.one_rate_note(plan, settings), *hf.optimizer_note(plan)),
)
