"""A whole plan as a configuration of axolotl."""

from __future__ import annotations

from hlscore.artifacts.plan import Plan
from hlscore.exporters.formats import Exporter, ExportSettings, Writer, origin, text_file
from hlscore.exporters.hf_training import (
    FILL_IN,
    counts_whole_conversations,
    optimizer_args,
    optimizer_name,
    optimizer_note,
    precision_note,
    refuse_packed,
    revision,
)
from hlscore.exporters.limits import Limits
from hlscore.exporters.peft import adapter_config
from hlscore.exporters.peft_names import skip_modules
from hlscore.exporters.yaml_text import yaml_text

_TRAINER = "axolotl"

_TO_DO = (
    "",
    f"Fill in {FILL_IN}: the data set and its type. Batch, length and epochs are yours to change;",
    "the keys that start with lora_ are the plan.",
)


def axolotl_fields(plan: Plan, settings: ExportSettings) -> dict[str, object]:
    """The keys of an axolotl configuration.

    Args:
        plan: A plan within the limits of axolotl.
        settings: Base model and learning rates.

    Returns:
        The keys in the order they are written in; empty ones are left out in the file.
    """
    base = settings.base(plan)
    full_rate, lora_rate = settings.rates(plan)
    return {
        "base_model": base,
        "revision_of_model": revision(plan, settings),
        **_packing(plan),
        **_adapter(plan),
        "learning_rate": lora_rate if plan.lora_modules else full_rate,
        # Axolotl gives this rate to every weight in modules_to_save, embedding or not.
        "embedding_lr": full_rate if plan.full else None,
        "optimizer": optimizer_name(plan),
        "optim_args": optimizer_args(plan),
        "lr_scheduler": "cosine",
        "micro_batch_size": plan.memory.train_batch,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "sequence_len": plan.memory.train_length,
        "gradient_checkpointing": True,
        "bf16": "auto",
        "train_on_inputs": counts_whole_conversations(plan) or None,
        "datasets": [{"path": FILL_IN, "type": FILL_IN}],
        "output_dir": "./outputs",
    }


def _adapter(plan: Plan) -> dict[str, object]:
    config = adapter_config(plan)
    return {
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
    }


def _packing(plan: Plan) -> dict[str, object]:
    bits = plan.memory.base_bits
    if bits == 4:
        skipped = {"llm_int8_skip_modules": skip_modules(plan)}
        return {"adapter": "qlora", "load_in_4bit": True, "bnb_config_kwargs": skipped}
    return {"adapter": "lora", "load_in_8bit": True if bits == 8 else None}


def _files(plan: Plan, settings: ExportSettings) -> dict[str, Writer]:
    if plan.memory.base_bits == 8:
        refuse_packed(plan, _TRAINER)
    text = yaml_text((*origin(plan), *_TO_DO), axolotl_fields(plan, settings))
    return {"axolotl.yaml": text_file(text)}


def _notes(plan: Plan, settings: ExportSettings) -> tuple[str, ...]:
    del settings
    notes = [*precision_note(plan), *optimizer_note(plan)]
    if counts_whole_conversations(plan):
        notes.append(
            "train_on_inputs counts every turn, as the probes did; axolotl leaves the tokens "
            "between turns out of the loss."
        )
    if plan.full and plan.lora_modules:
        notes.append(
            "embedding_lr reaches the weights of full modules, not their biases or fused experts: "
            "those get learning_rate. Axolotl drops keys that it does not know without a word."
        )
    return tuple(notes)


EXPORTER = Exporter(
    name="axolotl",
    summary="axolotl.yaml: the whole plan with ranks and both learning rates, for `axolotl train`",
    limits=Limits(trainer=_TRAINER),
    files=_files,
    methods=("sft",),
    usage="axolotl train {out}",
    notes=_notes,
)
