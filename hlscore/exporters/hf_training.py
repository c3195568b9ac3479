"""What a plan means for the arguments of trainers that are built on transformers' Trainer."""

from __future__ import annotations

from hlscore.artifacts.plan import Plan
from hlscore.exporters.formats import ExportSettings
from hlscore.exporters.limits import ExportError
from hlscore.exporters.peft import ties_weights
from hlscore.exporters.peft_names import never_packed

# What stands where the reader has to fill something in.
FILL_IN = "FILL_IN"

_MOMENTUM = "momentum=0.9"

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


def optimizer_args(plan: Plan) -> str | None:
    """Arguments of the plan's optimizer in transformers.

    Args:
        plan: The plan.

    Returns:
        A value of `TrainingArguments.optim_args`; `None` where the name says it all.
    """
    return _MOMENTUM if plan.memory.optimizer == "sgd-momentum" else None


def optimizer_note(plan: Plan) -> tuple[str, ...]:
    """A remark about the arguments of the optimizer.

    Args:
        plan: The plan.

    Returns:
        The remark; empty where the optimizer has no arguments.
    """
    if optimizer_args(plan) is None:
        return ()
    return (
        f"SGD's momentum stands in optim_args as {_MOMENTUM}; transformers 5.0 and older pass over "
        "it.",
    )


def training_fields(plan: Plan, settings: ExportSettings) -> dict[str, object]:
    """Arguments of transformers' Trainer, for trainers that know one learning rate.

    Args:
        plan: The plan.
        settings: May set the rates.

    Returns:
        The arguments by their names in `TrainingArguments`.
    """
    return {
        "learning_rate": one_rate(plan, settings),
        "optim": optimizer_name(plan),
        "optim_args": optimizer_args(plan),
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": plan.memory.train_batch,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
    }


def counts_whole_conversations(plan: Plan) -> bool:
    """Whether the loss that was probed is on every token of conversations.

    TRL's default; other trainers count the assistant's alone unless told otherwise.
    """
    probes = plan.provenance.probes
    return probes.format == "messages" and probes.loss_on == "all"


def counts_assistant_only(plan: Plan) -> bool:
    """Whether the loss that was probed is on the assistant's tokens of conversations alone."""
    return plan.provenance.probes.loss_on == "assistant"


def seed_adapter_lines(lacks: str, key: str, instead_of: str) -> tuple[str, ...]:
    """Lines for the top of a file that say how a plan with several ranks gets to a trainer.

    Args:
        lacks: What the trainer does not know, in a sentence.
        key: The key that takes the path of an adapter.
        instead_of: What the keys that it replaces have in their names.

    Returns:
        The lines.
    """
    return (
        f"{lacks} A plan with more:",
        SEED_ADAPTER,
        f"Give its path as {key}, in place of the keys with {instead_of}.",
    )


def revision(plan: Plan, settings: ExportSettings) -> str | None:
    """Revision of the base model to load.

    Args:
        plan: The plan.
        settings: May name another base model.

    Returns:
        The plan's revision; `None` where it has none, or the base model is another one.
    """
    return plan.model.revision if settings.base(plan) == plan.model.name else None


def one_rate(plan: Plan, settings: ExportSettings, method: str | None = None) -> float:
    """The learning rate where a trainer knows only one.

    Args:
        plan: The plan.
        settings: May set the rates.
        method: The loss that is trained; `None` means the one that was probed.

    Returns:
        The smaller one of those that the plan needs: a rate too high ruins modules, one too low
        only trains them slowly.
    """
    full, lora = settings.rates(plan, method)
    if plan.full and plan.lora_modules:
        return min(full, lora)
    return full if plan.full else lora


def one_rate_note(plan: Plan, settings: ExportSettings) -> tuple[str, ...]:
    """A remark about the learning rate where a trainer knows only one.

    Args:
        plan: The plan.
        settings: May set the rates.

    Returns:
        The remark; empty where the plan needs only one rate.
    """
    if not plan.full or not plan.lora_modules:
        return ()
    full, lora = settings.rates(plan)
    return (
        f"One learning rate holds for everything: {min(full, lora):g}, the smaller one of {full:g} "
        f"for full modules and {lora:g} for LoRA. Axolotl, Unsloth and TRL can give each its own.",
    )


def refuse_packed(plan: Plan, trainer: str) -> None:
    """Refuse what needs unpacked weights where a trainer packs the whole base model.

    Args:
        plan: The plan.
        trainer: What to call the trainer.

    Raises:
        ExportError: A packed weight would be trained in full, or by the name of its parameter.
    """
    bits = plan.memory.base_bits
    for module, what in never_packed(plan):
        if bits != 16:
            raise ExportError(
                f"{trainer} packs every linear layer into {bits} bits, also '{module}', which is "
                f"to be {what}.",
                hint="Plan again with --base 16.",
            )


def refuse_tied(plan: Plan, trainer: str) -> None:
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


def float32_base(plan: Plan) -> str:
    """How much memory a base model in float32 takes more than the plan counts, in words."""
    more = 0 if plan.memory.base_bits != 16 else plan.memory.frozen_bytes + plan.memory.copy_bytes
    return f" ({more / 2**30:.3g} GiB more than the plan counts)" if more else ""


def precision_note(plan: Plan) -> tuple[str, ...]:
    """A remark about the precision that PEFT leaves full modules in.

    Args:
        plan: The plan.

    Returns:
        The remark; empty where nothing is trained in full, or 16 bits are meant.
    """
    if not plan.full or plan.memory.master != "fp32":
        return ()
    return (
        "Modules trained in full keep the precision that the base model is loaded in: in bfloat16 "
        f"small learning rates are lost. Load it in float32{float32_base(plan)} or upcast what is "
        "trained.",
    )
