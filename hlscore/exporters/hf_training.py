"""What a plan means for the arguments of trainers that are built on transformers' Trainer."""

from __future__ import annotations

from hlscore.artifacts.plan import Plan
from hlscore.exporters.exporter import ExportSettings
from hlscore.exporters.limits import SEED_ADAPTER
from hlscore.wording import memory

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


def optimizer_name(plan: Plan) -> str:
    """The plan's optimizer as a value of `TrainingArguments.optim`."""
    return _OPTIMIZERS[plan.memory.optimizer]


def optimizer_args(plan: Plan) -> str | None:
    """A value of `TrainingArguments.optim_args`; `None` where the name says it all."""
    return _MOMENTUM if plan.memory.optimizer == "sgd-momentum" else None


def optimizer_note(plan: Plan) -> tuple[str, ...]:
    """A remark about the arguments of the optimizer, if it has any."""
    if optimizer_args(plan) is None:
        return ()
    return (
        f"SGD's momentum is set by optim_args ({_MOMENTUM}), which transformers up to 5.0 ignores.",
    )


def training_fields(plan: Plan, settings: ExportSettings) -> dict[str, object]:
    """Arguments of transformers' Trainer, for trainers that have one learning rate."""
    return {
        "learning_rate": settings.one_rate(plan),
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


def seed_adapter_lines(lacks: str, key: str, replaced: str) -> tuple[str, ...]:
    """Comment lines that say how a plan with several ranks gets to a trainer.

    Args:
        lacks: What the trainer cannot express, in a sentence.
        key: The key that takes the path of an adapter.
        replaced: What the keys that it replaces have in their names.
    """
    return (
        f"{lacks} A plan with more:",
        SEED_ADAPTER,
        f"Give its path as {key}, in place of the keys with {replaced}.",
    )


def one_rate_note(plan: Plan, settings: ExportSettings) -> tuple[str, ...]:
    """A remark about the learning rate of a trainer that has one, where the plan needs two."""
    if not plan.full or not plan.lora_modules:
        return ()
    full, lora = settings.rates(plan)
    return (
        f"One learning rate holds for everything: {min(full, lora):g}, the smaller one of {full:g} "
        f"for full modules and {lora:g} for LoRA. Axolotl, Unsloth and TRL can give each its own.",
    )


def precision_note(plan: Plan) -> tuple[str, ...]:
    """A remark about modules trained in full where a trainer does not upcast them."""
    if not plan.full or plan.memory.master != "fp32":
        return ()
    return (
        "Modules trained in full keep the precision that the base model is loaded in: in bfloat16 "
        f"small learning rates are lost. Load it in float32{float32_base(plan)} or upcast what is "
        "trained.",
    )


def float32_base(plan: Plan) -> str:
    """How much memory a base model in float32 takes more than the plan counts, in words."""
    more = 0 if plan.memory.base_bits != 16 else plan.memory.frozen_bytes + plan.memory.copy_bytes
    return f" ({memory(more)} more than the plan counts)" if more else ""
