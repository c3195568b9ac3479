"""A whole plan as a configuration of axolotl."""

from __future__ import annotations

from hlscore.artifacts.plan import Plan
from hlscore.exporters import hf_training as hf
from hlscore.exporters.adapter_config import adapter_config, skip_modules
from hlscore.exporters.exporter import FILL_IN, Exporter, ExportSettings, yaml_text
from hlscore.exporters.limits import Limits

_LIMITS = Limits(trainer="axolotl", packs=(8,))

_TO_DO = (
    "",
    f"Fill in {FILL_IN}: the data set and its type. Batch, length and epochs are yours to change;",
    "the keys that start with lora_ are the plan.",
)


def _files(plan: Plan, settings: ExportSettings) -> dict[str, str]:
    full_rate, lora_rate = settings.rates(plan)
    bits = plan.memory.base_bits
    config = adapter_config(plan)
    fields = {
        "base_model": settings.base(plan),
        "revision_of_model": settings.revision(plan),
        "adapter": "qlora" if bits == 4 else "lora",
        "load_in_4bit": bits == 4 or None,
        "load_in_8bit": bits == 8 or None,
        "bnb_config_kwargs": {"llm_int8_skip_modules": skip_modules(plan)} if bits == 4 else None,
        "lora_r": config["r"],
        "lora_alpha": config["lora_alpha"],
        "lora_dropout": config["lora_dropout"],
        "lora_fan_in_fan_out": config["fan_in_fan_out"] or None,
        "lora_target_modules": config["target_modules"],
        "lora_target_parameters": config["target_parameters"],
        "lora_modules_to_save": config["modules_to_save"],
        "lora_rank_pattern": config["rank_pattern"],
        "lora_alpha_pattern": config["alpha_pattern"],
        "peft_ensure_weight_tying": config["ensure_weight_tying"] or None,
        "learning_rate": lora_rate if plan.lora_modules else full_rate,
        # Axolotl gives this rate to every weight in modules_to_save, embedding or not.
        "embedding_lr": full_rate if plan.full else None,
        "optimizer": hf.optimizer_name(plan),
        "optim_args": hf.optimizer_args(plan),
        "lr_scheduler": "cosine",
        "micro_batch_size": plan.memory.train_batch,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "sequence_len": plan.memory.train_length,
        "gradient_checkpointing": True,
        "bf16": "auto",
        "train_on_inputs": hf.counts_whole_conversations(plan) or None,
        "datasets": [{"path": FILL_IN, "type": FILL_IN}],
        "output_dir": "./outputs",
    }
    return {"axolotl.yaml": yaml_text(plan, _TO_DO, fields)}


def _notes(plan: Plan, settings: ExportSettings) -> tuple[str, ...]:  # noqa: ARG001
    notes = [*hf.precision_note(plan), *hf.optimizer_note(plan)]
    if hf.counts_whole_conversations(plan):
        notes.append(
            "train_on_inputs counts every turn, as the probes did; axolotl leaves the tokens "
            "between turns out of the loss."
        )
    if plan.full and plan.lora_modules:
        notes.append(
            "embedding_lr applies to the weights of full modules, not to their biases or fused "
            "experts, which get learning_rate. Axolotl silently ignores keys that it does not know."
        )
    return tuple(notes)


EXPORTER = Exporter(
    name="axolotl",
    summary="axolotl.yaml: the whole plan with ranks and both learning rates, for `axolotl train`",
    limits=_LIMITS,
    files=_files,
    methods=("sft",),
    usage="axolotl train {out}",
    notes=_notes,
)
