"""A plan for TRL: files for its command line, and a script that trains all of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import plan_text
from hlscore.errors import UsageError
from hlscore.exporters import hf_training as hf
from hlscore.exporters.adapter_config import adapter_config, never_packed
from hlscore.exporters.exporter import Exporter, ExportSettings, comment, origin, yaml_text
from hlscore.exporters.limits import Limits
from hlscore.rollouts.verifiers import VERIFIERS, is_builtin
from hlscore.settings import ObjectiveSettings

METHODS = ("sft", "dpo", "grpo")

_TEMPLATE = Path(__file__).with_name("trl_train.py.txt")
_REWARDS = "hlscore.training.rewards"


def obstacles(plan: Plan) -> tuple[str, ...]:
    """What of a plan the `trl` command cannot express; the script expresses everything."""
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
    """The keys of a configuration file of TRL, in order.

    For a plan that the `trl` command cannot express, `lora_r` is a text: TRL's parser wants a
    number, stops there, and shows the text in its message.
    """
    memory, config, reasons = plan.memory, adapter_config(plan), obstacles(plan)
    targets = config["target_modules"]
    if isinstance(targets, list) and len(targets) == 1:
        # TRL makes a text of a list of one, and PEFT reads a text as a regular expression.
        targets = [re.escape(targets[0])]
    return {
        "model_name_or_path": settings.base(plan),
        "model_revision": settings.revision(plan),
        "load_in_4bit": memory.base_bits == 4 or None,
        "load_in_8bit": memory.base_bits == 8 or None,
        "output_dir": f"{method}-output",
        "learning_rate": settings.one_rate(plan, method),
        "optim": hf.optimizer_name(plan),
        "optim_args": hf.optimizer_args(plan),
        "per_device_train_batch_size": None if method == "grpo" else memory.train_batch,
        "max_length": None if method == "grpo" else memory.train_length,
        "assistant_only_loss": (method == "sft" and hf.counts_assistant_only(plan)) or None,
        **_loss_fields(plan, method),
        "use_peft": True,
        "lora_r": f"not for trl, {' and '.join(reasons)}: run python train.py {method}"
        if reasons
        else config["r"],
        "lora_alpha": config["lora_alpha"],
        "lora_dropout": config["lora_dropout"],
        "lora_target_modules": [targets] if isinstance(targets, str) else targets,
        "lora_target_parameters": config["target_parameters"],
        "lora_modules_to_save": config["modules_to_save"],
    }


def _probed_objective(plan: Plan) -> ObjectiveSettings | None:
    """Settings of the loss that was probed; `None` without probes or where the plan has none."""
    given = plan.provenance.settings.get("objective")
    if plan.provenance.probes.objective == "none" or not isinstance(given, Mapping):
        return None
    values = {
        item.name: tuple(value) if isinstance(value := given[item.name], list) else value
        for item in fields(ObjectiveSettings)
        if item.name in given
    }
    try:
        return ObjectiveSettings(**values) if values else None  # type: ignore[arg-type]
    except (UsageError, TypeError, ValueError, AttributeError):  # edited by hand
        return None


def _reward_funcs(found: ObjectiveSettings) -> list[str]:
    """The probed rewards as `reward_funcs` of TRL.

    Import paths, as both `trl grpo` and the exported script read them; a pattern, and a function
    inside a class, in the form of `--reward`, which the script alone reads. Empty where one of
    them cannot be imported: a function that was given in Python.
    """
    paths = []
    for name in found.rewards:
        module, _, function = name.partition(":")
        if name in VERIFIERS:
            paths.append(f"{_REWARDS}.{name}")
        elif is_builtin(name) or (module and "." in function):
            paths.append(name)
        elif module and function:
            paths.append(f"{module}.{function}")
        else:
            return []
    return paths


def _loss_fields(plan: Plan, method: str) -> dict[str, object]:
    """The probed loss and how its completions were sampled, as arguments of TRL's trainers.

    Empty where another loss than that of the method was probed.
    """
    found = _probed_objective(plan)
    if found is None or found.objective != method or method == "sft":
        return {}
    if method == "dpo":
        return {"loss_type": [found.loss_type_name], "beta": found.beta_value}
    by_sequence = found.loss_type_name == "gspo"
    loss: dict[str, object] = {
        "loss_type": "grpo" if by_sequence else found.loss_type_name,
        "importance_sampling_level": "sequence" if by_sequence else "token",
        "scale_rewards": found.scale_rewards,
        "epsilon": found.epsilon,
        "epsilon_high": found.epsilon_high,
        "mask_truncated_completions": found.mask_truncated,
        "max_completion_length": found.max_new_tokens,
        "temperature": found.temperature,
    }
    if not found.samples_rollouts:
        return loss
    batch = plan.memory.train_batch
    rewards = _reward_funcs(found)
    return loss | {
        "reward_funcs": rewards,
        "reward_weights": list(found.reward_weights) if rewards else None,
        "num_generations": found.generations,
        # TRL wants whole groups: as many micro-batches as make one.
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": math.lcm(batch, found.generations) // batch,
        "top_p": found.top_p,
        "top_k": found.top_k,
    }


def _remarks(plan: Plan, settings: ExportSettings, method: str) -> tuple[str, ...]:
    full, lora = settings.rates(plan, method)
    reasons, rewards = obstacles(plan), ""
    found = _probed_objective(plan)
    if method == "grpo" and not _loss_fields(plan, method).get("reward_funcs"):
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
            f"{hf.float32_base(plan)}:",
            "  with dtype: bfloat16 it would keep full modules in 16 bits and lose small steps.",
        ]
    if found is not None and found.objective == method != "sft":
        lines.append("Loss and sampling are those of the probes.")
    elif plan.provenance.probes.objective != "none" and method != "sft":
        lines.append(f"The probes were of {plan.provenance.probes.objective}, not of {method}.")
    if settings.full_lr is None or settings.lora_lr is None:
        lines.append(f"Rates: {settings.rate_source(plan, method)}.")
    return tuple(lines)


def _files(plan: Plan, settings: ExportSettings) -> dict[str, str]:
    rates = {method: settings.rates(plan, method) for method in METHODS}
    script = _TEMPLATE.read_text(encoding="utf-8").replace("{{RATES}}", repr(rates))
    texts = {
        f"{method}.yaml": yaml_text(
            plan, _remarks(plan, settings, method), config_fields(plan, settings, method)
        )
        for method in METHODS
    }
    return texts | {"train.py": comment(origin(plan)) + script, "plan.json": plan_text(plan)}


def _notes(plan: Plan, settings: ExportSettings) -> tuple[str, ...]:  # noqa: ARG001
    reasons, notes = obstacles(plan), []
    if reasons:
        notes.append(f"The trl command cannot run this plan ({'; '.join(reasons)}); train.py does.")
    found = _probed_objective(plan)
    if found is not None and found.objective == "grpo":
        if not _reward_funcs(found):
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
    return (*notes, *hf.optimizer_note(plan))


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
