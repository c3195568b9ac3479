"""A plan for TRL: files for its command line, and a script that trains all of it."""

from __future__ import annotations

import re
from pathlib import Path

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import plan_text
from hlscore.exporters.formats import Exporter, ExportSettings, Writer, origin, text_file
from hlscore.exporters.hf_training import (
    counts_assistant_only,
    one_rate,
    optimizer_args,
    optimizer_name,
    optimizer_note,
    revision,
)
from hlscore.exporters.limits import Limits
from hlscore.exporters.peft import adapter_config
from hlscore.exporters.peft_names import never_packed
from hlscore.exporters.quoting import comment
from hlscore.exporters.yaml_text import yaml_text

METHODS = ("sft", "dpo", "grpo")

_TEMPLATE = Path(__file__).with_name("templates") / "trl_train.py.txt"

# TRL's own learning rates, to say where a suggestion made for SFT may be too high.
_USUAL = {"dpo": "1e-6", "grpo": "1e-6"}


def obstacles(plan: Plan) -> tuple[str, ...]:
    """What of a plan the `trl` command cannot express; the script expresses everything.

    Args:
        plan: The plan.

    Returns:
        Reasons; empty for a plan that the command can train.
    """
    config = adapter_config(plan)
    found = []
    if config["rank_pattern"] or config["alpha_pattern"]:
        found.append("the plan has several ranks")
    if config["ensure_weight_tying"]:
        found.append("the embedding must stay tied to the head")
    if plan.memory.base_bits != 16 and any(never_packed(plan)):
        found.append("some modules must not be quantized")
    return tuple(found)


def config_fields(plan: Plan, settings: ExportSettings, method: str) -> dict[str, object]:
    """The keys of a configuration file of TRL.

    Args:
        plan: A plan within TRL's limits.
        settings: Base model and learning rates.
        method: `sft`, `dpo` or `grpo`.

    Returns:
        The keys in the order they are written in. For a plan that the `trl` command cannot
        express, `lora_r` is a text at which its parser stops.
    """
    memory = plan.memory
    return {
        "model_name_or_path": settings.base(plan),
        "model_revision": revision(plan, settings),
        "load_in_4bit": memory.base_bits == 4 or None,
        "load_in_8bit": memory.base_bits == 8 or None,
        "output_dir": f"{method}-output",
        "learning_rate": one_rate(plan, settings),
        "optim": optimizer_name(plan),
        "optim_args": optimizer_args(plan),
        "per_device_train_batch_size": None if method == "grpo" else memory.train_batch,
        "max_length": None if method == "grpo" else memory.train_length,
        "assistant_only_loss": (method == "sft" and counts_assistant_only(plan)) or None,
        "use_peft": True,
        **_lora_fields(plan, method),
    }


def _lora_fields(plan: Plan, method: str) -> dict[str, object]:
    config = adapter_config(plan)
    reasons = obstacles(plan)
    # An integer for the parser of TRL: a text stops it, and is shown in its message.
    stop = f"not for trl, {' and '.join(reasons)}: run python train.py {method}"
    targets = config["target_modules"]
    if isinstance(targets, list) and len(targets) == 1:
        # TRL makes a text of a list of one, and PEFT reads a text as a regular expression.
        targets = [re.escape(targets[0])]
    return {
        "lora_r": stop if reasons else config["r"],
        "lora_alpha": config["lora_alpha"],
        "lora_dropout": config["lora_dropout"],
        "lora_target_modules": [targets] if isinstance(targets, str) else targets,
        "lora_target_parameters": config["target_parameters"],
        "lora_modules_to_save": config["modules_to_save"],
    }


def _remarks(plan: Plan, settings: ExportSettings, method: str) -> tuple[str, ...]:
    full, lora = settings.rates(plan)
    reasons = obstacles(plan)
    lines = [
        "",
        f"python train.py {method} --config {method}.yaml --dataset_name DATA",
        f"  trains the plan, full modules at {full:g} and adapters at {lora:g}; --full_lr and",
        "  --lora_lr change these, and learning_rate and lora_* below are not read.",
    ]
    if reasons:
        lines.append(f"Not for the trl command: {' and '.join(reasons)}. It stops at lora_r.")
    else:
        more = " --reward_funcs FUNCTION" if method == "grpo" else ""
        lines += [
            f"trl {method} --config {method}.yaml --dataset_name DATA{more}",
            "  trains the same modules, all of them at learning_rate, on a model in float32: with",
            "  dtype: bfloat16 it would keep full modules in 16 bits and lose small steps.",
        ]
    if method in _USUAL:
        lines.append(
            f"The rates are suggested for SFT; TRL's own for {method.upper()} is {_USUAL[method]}."
        )
    return tuple(lines)


def _script(plan: Plan, settings: ExportSettings) -> str:
    full, lora = settings.rates(plan)
    text = _TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("{{FULL_LR}}", repr(full)).replace("{{LORA_LR}}", repr(lora))
    return comment(origin(plan)) + text


def _files(plan: Plan, settings: ExportSettings) -> dict[str, Writer]:
    configs = {
        f"{method}.yaml": yaml_text(
            (*origin(plan), *_remarks(plan, settings, method)),
            config_fields(plan, settings, method),
        )
        for method in METHODS
    }
    texts = {**configs, "train.py": _script(plan, settings), "plan.json": plan_text(plan)}
    return {name: text_file(text) for name, text in texts.items()}


def _notes(plan: Plan, settings: ExportSettings) -> tuple[str, ...]:
    del settings
    reasons = obstacles(plan)
    if not reasons:
        return optimizer_note(plan)
    return (
        f"The trl command cannot run this plan ({'; '.join(reasons)}); train.py does.",
        *optimizer_note(plan),
    )


EXPORTER = Exporter(
    name="trl",
    summary="train.py, sft.yaml, dpo.yaml, grpo.yaml: TRL, with a learning rate for each group",
    # TRL computes losses from the weight of the head, past an adapter, and refuses one there.
    limits=Limits(trainer="TRL", head=False),
    files=_files,
    folder=True,
    usage="python {out}/train.py {objective} --config {out}/{objective}.yaml --dataset_name DATA",
    notes=_notes,
)
