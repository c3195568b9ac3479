"""A plan for TRL: files for its command line, and a script that trains all of it."""

from __future__ import annotations

import re
from pathlib import Path

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import plan_text
from hlscore.exporters.formats import Exporter, ExportSettings, Writer, origin, text_file
from hlscore.exporters.hf_training import (
    counts_assistant_only,
    float32_base,
    one_rate,
    optimizer_args,
    optimizer_name,
    optimizer_note,
    revision,
)
from hlscore.exporters.limits import Limits
from hlscore.exporters.peft import adapter_config
from hlscore.exporters.peft_names import never_packed
from hlscore.exporters.probed import loss_fields, probed_objective, reward_funcs
from hlscore.exporters.quoting import comment
from hlscore.exporters.yaml_text import yaml_text

METHODS = ("sft", "dpo", "grpo")

_TEMPLATE = Path(__file__).with_name("templates") / "trl_train.py.txt"


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
        "learning_rate": one_rate(plan, settings, method),
        "optim": optimizer_name(plan),
        "optim_args": optimizer_args(plan),
        "per_device_train_batch_size": None if method == "grpo" else memory.train_batch,
        "max_length": None if method == "grpo" else memory.train_length,
        "assistant_only_loss": (method == "sft" and counts_assistant_only(plan)) or None,
        **loss_fields(plan, method),
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
    full, lora = settings.rates(plan, method)
    reasons, rewards = obstacles(plan), ""
    found = probed_objective(plan)
    if method == "grpo" and not loss_fields(plan, method).get("reward_funcs"):
        rewards = " --reward_funcs REWARD"
    lines = [
        "",
        f"python train.py {method} --config {method}.yaml --dataset_name DATA{rewards}",
        f"  trains the plan, full modules at {full:g} and adapters at {lora:g}; --full_lr and",
        "  --lora_lr change these, and learning_rate and lora_* below are not read.",
    ]
    if reasons:
        lines.append(f"Not for the trl command: {' and '.join(reasons)}. It stops at lora_r.")
    else:
        lines += [
            f"trl {method} --config {method}.yaml --dataset_name DATA{rewards}",
            "  trains the same modules, all of them at learning_rate, on a model in float32"
            f"{float32_base(plan)}:",
            "  with dtype: bfloat16 it would keep full modules in 16 bits and lose small steps.",
        ]
    if found is not None and found.objective == method != "sft":
        lines.append("Loss and sampling are those of the probes.")
    elif plan.provenance.probes.objective != "none" and method != "sft":
        lines.append(f"The probes were of {plan.provenance.probes.objective}, not of {method}.")
    if settings.full_lr is None or settings.lora_lr is None:
        lines.append(f"Rates: {settings.rate_source(plan, method)}.")
    return tuple(lines)


def _script(plan: Plan, settings: ExportSettings) -> str:
    rates = {method: settings.rates(plan, method) for method in METHODS}
    text = _TEMPLATE.read_text(encoding="utf-8").replace("{{RATES}}", repr(rates))
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
    reasons, notes = obstacles(plan), []
    if reasons:
        notes.append(f"The trl command cannot run this plan ({'; '.join(reasons)}); train.py does.")
    found = probed_objective(plan)
    if found is not None and found.objective == "grpo":
        if not reward_funcs(found):
            notes.append(
                "No reward is in grpo.yaml: the probed completions had theirs from "
                f"{'a file' if found.rollouts else 'a function in memory'}. "
                "Give --reward_funcs package.module:function."
            )
        if found.stop:
            notes.append(
                f"TRL has no stop texts: training does not end completions at "
                f"{', '.join(map(repr, found.stop))}, as the probes did."
            )
    return (*notes, *optimizer_note(plan))


EXPORTER = Exporter(
    name="trl",
    summary="train.py, sft.yaml, dpo.yaml, grpo.yaml: TRL, with a learning rate for each group",
    # TRL computes losses from the weight of the head, past an adapter, and refuses one there.
    limits=Limits(trainer="TRL", head=False),
    files=_files,
    folder=True,
    usage="python {out}/train.py {objective} --config {out}/{objective}.yaml --dataset_name DATA",
    notes=_notes,
    methods=METHODS,
)
