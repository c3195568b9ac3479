"""A plan as arguments of ms-swift."""

from __future__ import annotations

from hlscore.exporters.adapter_config import NO_TARGETS
from hlscore.exporters.exporter import FILL_IN, Export, Exporter, yaml_text
from hlscore.exporters.limits import SEED_ADAPTER, Limits

_TO_DO = (
    f"Fill in {FILL_IN}: the data set. use_hf is about ids of a hub; without it they are",
    "ModelScope's.",
    "ms-swift has one rank for all modules. A plan with more:",
    SEED_ADAPTER,
    "Give its path as adapters, in place of the keys with lora, target and modules_to_save.",
)


def _files(export: Export) -> dict[str, str]:
    plan, adapter, bits = export.plan, export.adapter, export.plan.memory.base_bits
    targets = [] if adapter["target_modules"] == NO_TARGETS else adapter["target_modules"]
    fields = {
        "model": export.base,
        "model_revision": adapter["revision"],
        "use_hf": True,
        "quant_method": None if bits == 16 else "bnb",
        "quant_bits": None if bits == 16 else bits,
        "torch_dtype": "bfloat16",
        "tuner_type": "lora",
        "target_modules": targets,
        # Without targets ms-swift would take all linear layers.
        "target_regex": None if targets else NO_TARGETS,
        "target_parameters": adapter["target_parameters"],
        "modules_to_save": adapter["modules_to_save"],
        "lora_rank": adapter["r"],
        "lora_alpha": adapter["lora_alpha"],
        "lora_dropout": adapter["lora_dropout"],
        **export.training_fields,
        "max_length": plan.memory.train_length,
        "loss_scale": "all" if export.counts_whole_conversations else None,
        "dataset": [FILL_IN],
        "output_dir": "./outputs",
    }
    return {"ms_swift.yaml": yaml_text(EXPORTER.heading(plan, _TO_DO), fields)}


EXPORTER = Exporter(
    name="ms-swift",
    summary="ms_swift.yaml: full and LoRA modules of one rank, for `swift sft`; more ranks with "
    "the seed adapter",
    limits=Limits(
        trainer="ms-swift", ranks=False, packs=(8, 4), unties=True, starts_from_adapter=True
    ),
    files=_files,
    methods=("sft",), upcasts=False, rates=1, optimizer=True,
    usage="swift sft {out}",
)  # fmt: skip
