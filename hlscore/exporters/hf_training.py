"""What a plan means for the arguments of trainers that are built on transformers' Trainer."""

from __future__ import annotations

from hlscore.artifacts.plan import Plan
from hlscore.exporters.formats import ExportSettings
from hlscore.exporters.limits import ExportError
from hlscore.exporters.moe_names import needs_parameter_name
from hlscore.exporters.peft import modules_to_save, ties_weights

# What stands where the reader has to fill something in.
FILL_IN = "FILL_IN"

_OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw8bit": "adamw_bnb_8bit",
    "adafactor": "adafactor",
    "lion": "lion_32bit",
    "lion8bit": "lion_8bit",
    "sgd": "sgd",
    "sgd-momentum": "sgd",
}

SEED_ADAPTER = (
    "`hlscore export --to seed-adapter` writes an untrained adapter that carries the whole plan "
    "and that this trainer can start from."
)


def optimizer_name(plan: Plan) -> str:
    """Name of the plan's optimizer in transformers.

    Args:
        plan: The plan.

    Returns:
        A value of `TrainingArguments.optim`.
    """
    return _OPTIMIZERS[plan.memory.optimizer]


def revision(plan: Plan, settings: ExportSettings) -> str | None:
    """Revision of the base model to load.

    Args:
        plan: The plan.
        settings: May name another base model.

    Returns:
        The plan's revision; `None` where it has none, or the base model is another one.
    """
    return plan.model.revision if settings.base(plan) == plan.model.name else None


def unpacked_modules(plan: Plan) -> list[str]:
    """Modules that must not be packed when the rest of the base model is.

    Args:
        plan: The plan.

    Returns:
        Full names, sorted: what is trained in full, what has LoRA on its parameter, and the
        output head, which bitsandbytes leaves alone only as long as nothing else is named.
    """
    by_parameter = {
        item.module for item in plan.lora_modules
        if item.form == "linear" and needs_parameter_name(plan, item)
    }  # fmt: skip
    return sorted({*modules_to_save(plan), *by_parameter, "lm_head"})


def one_rate(plan: Plan, settings: ExportSettings) -> float:
    """The learning rate where a trainer knows only one.

    Args:
        plan: The plan.
        settings: May set the rates.

    Returns:
        That of full modules if there are any, which is the smaller one: the rate of LoRA can
        ruin them, while theirs only trains LoRA slowly.
    """
    full, lora = settings.rates(plan)
    return full if plan.full else lora


def one_rate_note(plan: Plan) -> tuple[str, ...]:
    """A remark about the learning rate where a trainer knows only one.

    Args:
        plan: The plan.

    Returns:
        The remark; empty where the plan needs only one rate.
    """
    if not plan.full or not plan.lora_modules:
        return ()
    return (
        "One learning rate holds for everything: that of the full modules, which trains LoRA "
        "slowly. Axolotl, Unsloth and TRL can give each its own.",
    )


def refuse_packed_full(plan: Plan, trainer: str) -> None:
    """Refuse full modules on a packed base model that cannot leave them out.

    Args:
        plan: The plan.
        trainer: What to call the trainer.

    Raises:
        ExportError: The plan has packed weights and full modules.
    """
    bits = plan.memory.base_bits
    if bits != 16 and unpacked_modules(plan) != ["lm_head"]:
        raise ExportError(
            f"{trainer} packs every linear layer into {bits} bits, also those that the plan trains "
            "in full.",
            hint="Plan again with --base-bits 16.",
        )


def refuse_tied_full(plan: Plan, trainer: str) -> None:
    """Refuse to train a tied embedding in full where a trainer would untie it.

    Args:
        plan: The plan.
        trainer: What to call the trainer.

    Raises:
        ExportError: The plan trains a tied embedding in full.
    """
    if ties_weights(plan):
        raise ExportError(
            f"{trainer} would untie the embedding that the plan trains in full.",
            hint=SEED_ADAPTER,
        )


def precision_note(plan: Plan) -> tuple[str, ...]:
    """Remarks about precision: what PEFT leaves in 16 bits.

    Args:
        plan: The plan.

    Returns:
        A remark for plans with full modules and a master copy of 32 bits.
    """
    if not plan.full or plan.memory.master != "fp32":
        return ()
    return (
        "Modules trained in full keep the precision that the base model is loaded in: in bfloat16 "
        "small learning rates are lost. Load it in float32 or upcast what is trained.",
    )
