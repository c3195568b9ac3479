"""A plan as arguments of LLaMA-Factory."""

from __future__ import annotations

from hlscore.exporters.exporter import FILL_IN, Export, Exporter, yaml_text
from hlscore.exporters.limits import SEED_ADAPTER, Limits

_TO_DO = (
    f"Fill in {FILL_IN}: the data set as named in dataset_info.json, and the chat template.",
    "LLaMA-Factory has one rank for all modules and no LoRA on parameters. A plan with more:",
    SEED_ADAPTER,
    "Give its path as adapter_name_or_path, in place of the keys with lora and target.",
)


def _files(export: Export) -> dict[str, str]:
    plan, adapter, bits = export.plan, export.adapter, export.plan.memory.base_bits
    fields = {
        "model_name_or_path": export.base,
        "model_revision": adapter["revision"],
        "quantization_bit": None if bits == 16 else bits,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": adapter["r"],
        "lora_alpha": adapter["lora_alpha"],
        "lora_dropout": adapter["lora_dropout"],
        "lora_target": adapter["target_modules"],
        "additional_target": adapter["modules_to_save"],
        **export.training_fields,
        "train_on_prompt": export.counts_whole_conversations or None,
        "cutoff_len": plan.memory.train_length,
        "bf16": True,
        # Otherwise what is trained is upcast to float32.
        "pure_bf16": plan.memory.master == "bf16" or None,
        "dataset": FILL_IN,
        "template": FILL_IN,
        "output_dir": "./outputs",
    }
    return {"llama_factory.yaml": yaml_text(EXPORTER.heading(plan, _TO_DO), fields)}


EXPORTER = Exporter(
    name="llama-factory",
    summary="llama_factory.yaml: full and LoRA modules of one rank, for `llamafactory-cli train`; "
    "more ranks with the seed adapter",
    limits=Limits(
        trainer="LLaMA-Factory", ranks=False, parameters=False, only_full=False, packs=(8, 4),
        unties=True, starts_from_adapter=True,
    ),
    files=_files,
    methods=("sft",), rates=1, optimizer=True,
    usage="llamafactory-cli train {out}",
)  # fmt: skip
