"""A whole plan as a configuration of axolotl."""

from __future__ import annotations

from collections.abc import Iterator

from hlscore.exporters.adapter_config import skip_modules
from hlscore.exporters.exporter import FILL_IN, Export, Exporter, yaml_text
from hlscore.exporters.limits import Limits

_TO_DO = (
    f"Fill in {FILL_IN}: the data set and its type. Batch, length and epochs are yours to change;",
    "the keys that start with lora_ are the plan.",
)


def _files(export: Export) -> dict[str, str]:
    plan, adapter, bits = export.plan, export.adapter, export.plan.memory.base_bits
    full_rate, lora_rate = export.rates()
    fields = {
        "base_model": export.base,
        "revision_of_model": adapter["revision"],
        "adapter": "qlora" if bits == 4 else "lora",
        "load_in_4bit": bits == 4 or None,
        "load_in_8bit": bits == 8 or None,
        "bnb_config_kwargs": {"llm_int8_skip_modules": skip_modules(plan)} if bits == 4 else None,
        "lora_r": adapter["r"],
        "lora_alpha": adapter["lora_alpha"],
        "lora_dropout": adapter["lora_dropout"],
        "lora_fan_in_fan_out": adapter["fan_in_fan_out"] or None,
        "lora_target_modules": adapter["target_modules"],
        "lora_target_parameters": adapter["target_parameters"],
        "lora_modules_to_save": adapter["modules_to_save"],
        "lora_rank_pattern": adapter["rank_pattern"],
        "lora_alpha_pattern": adapter["alpha_pattern"],
        "peft_ensure_weight_tying": adapter["ensure_weight_tying"] or None,
        "learning_rate": lora_rate if plan.lora_modules else full_rate,
        # Axolotl gives this rate to every weight in modules_to_save, embedding or not.
        "embedding_lr": full_rate if plan.full else None,
        "optimizer": export.optimizer["optim"],
        "optim_args": export.optimizer["optim_args"],
        "lr_scheduler": "cosine",
        "micro_batch_size": plan.memory.train_batch,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "sequence_len": plan.memory.train_length,
        "gradient_checkpointing": True,
        "bf16": "auto",
        "train_on_inputs": export.counts_whole_conversations or None,
        "datasets": [{"path": FILL_IN, "type": FILL_IN}],
        "output_dir": "./outputs",
    }
    return {"axolotl.yaml": yaml_text(EXPORTER.heading(plan, _TO_DO), fields)}


def _remarks(export: Export) -> Iterator[str]:
    if export.counts_whole_conversations:
        yield (
            "train_on_inputs counts every turn, as the probes did; axolotl leaves the tokens "
            "between turns out of the loss."
        )
    if export.plan.full and export.plan.lora_modules:
        yield (
            "embedding_lr applies to the weights of full modules, not to their biases or fused "
            "experts, which get learning_rate. Axolotl silently ignores keys that it does not know."
        )


EXPORTER = Exporter(
    name="axolotl",
    summary="axolotl.yaml: the whole plan with ranks and both learning rates, for `axolotl train`",
    limits=Limits(trainer="axolotl", packs=(8,)),
    files=_files,
    methods=("sft",), upcasts=False, optimizer=True,
    usage="axolotl train {out}",
    remarks=_remarks,
)  # fmt: skip
