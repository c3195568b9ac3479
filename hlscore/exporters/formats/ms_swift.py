"""A plan as arguments of ms-swift."""

from __future__ import annotations

from hlscore.artifacts.plan import Plan
from hlscore.exporters import hf_training as hf
from hlscore.exporters.adapter_config import (
    NO_TARGETS,
    default_alpha,
    modules_to_save,
    target_modules,
    target_parameters,
)
from hlscore.exporters.exporter import FILL_IN, Exporter, ExportSettings, yaml_text
from hlscore.exporters.limits import SEED_ADAPTER, Limits
from hlscore.planning.revision import default_rank

_LIMITS = Limits(trainer="ms-swift", ranks=False, packs=(8, 4), unties=True, instead=SEED_ADAPTER)

_TO_DO = (
    "",
    f"Fill in {FILL_IN}: the data set. use_hf is about ids of a hub; without it they are",
    "ModelScope's.",
    *hf.seed_adapter_lines(
        "ms-swift has one rank for all modules.", "adapters", "lora, target and modules_to_save"
    ),
)


def _files(plan: Plan, settings: ExportSettings) -> dict[str, str]:
    bits = plan.memory.base_bits
    targets = target_modules(plan)
    fields = {
        "model": settings.base(plan),
        "model_revision": settings.revision(plan),
        "use_hf": True,
        "quant_method": None if bits == 16 else "bnb",
        "quant_bits": None if bits == 16 else bits,
        "torch_dtype": "bfloat16",
        "tuner_type": "lora",
        "target_modules": targets,
        # Without targets ms-swift would take all linear layers.
        "target_regex": None if targets else NO_TARGETS,
        "target_parameters": target_parameters(plan),
        "modules_to_save": modules_to_save(plan),
        "lora_rank": default_rank(plan),
        "lora_alpha": default_alpha(plan),
        "lora_dropout": 0.0,
        **hf.training_fields(plan, settings),
        "max_length": plan.memory.train_length,
        "loss_scale": "all" if hf.counts_whole_conversations(plan) else None,
        "dataset": [FILL_IN],
        "output_dir": "./outputs",
    }
    return {"ms_swift.yaml": yaml_text(plan, _TO_DO, fields)}


EXPORTER = Exporter(
    name="ms-swift",
    summary="ms_swift.yaml: full and LoRA modules of one rank, for `swift sft`; more ranks with "
    "the seed adapter",
    limits=_LIMITS,
    files=_files,
    methods=("sft",),
    usage="swift sft {out}",
    notes=lambda plan, settings: (
        *hf.one_rate_note(plan, settings),
        *hf.precision_note(plan),
        *hf.optimizer_note(plan),
    ),
)
