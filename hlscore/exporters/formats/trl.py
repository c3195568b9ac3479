"""A plan for TRL: files for its command line, and a script that trains all of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import plan_text
from hlscore.errors import UsageError
from hlscore.exporters.adapter_config import never_packed
from hlscore.exporters.exporter import Export, Exporter, yaml_text
from hlscore.exporters.limits import Limits
from hlscore.rollouts.verifiers import VERIFIERS, is_builtin
from hlscore.settings import ObjectiveSettings, build

METHODS = ("sft", "dpo", "grpo")

_TEMPLATE = Path(__file__).with_name("trl_train.py.txt")
_REWARDS = "hlscore.training.rewards"


def _files(export: Export) -> dict[str, str]:
    plan, texts = export.plan, {}
    for method in METHODS:
        comment = EXPORTER.heading(plan, _how_to_run(export, method))
        texts[f"{method}.yaml"] = yaml_text(comment, _fields(export, method))
    rates = {method: export.rates(method) for method in METHODS}
    script = _TEMPLATE.read_text(encoding="utf-8").replace("{{RATES}}", repr(rates))
    return texts | {"train.py": EXPORTER.heading(plan) + script, "plan.json": plan_text(plan)}


def _obstacles(export: Export) -> list[str]:
    """What of a plan the `trl` command cannot express; the script expresses everything."""
    plan, adapter = export.plan, export.adapter
    found = {
        "the plan has several ranks": adapter["rank_pattern"] or adapter["alpha_pattern"],
        "the embedding must stay tied to the head": adapter["ensure_weight_tying"],
        "some modules must not be quantized": plan.memory.base_bits != 16
        and any(never_packed(plan)),
    }
    return [reason for reason, holds in found.items() if holds]


def _fields(export: Export, method: str) -> dict[str, object]:
    """The keys of a configuration file of TRL, in order."""
    memory, adapter, targets = export.plan.memory, export.adapter, export.adapter["target_modules"]
    if isinstance(targets, str):
        targets = [targets]
    elif len(targets) == 1:
        # TRL makes a text of a list of one, and PEFT reads a text as a regular expression.
        targets = [re.escape(targets[0])]
    rank = adapter["r"]
    if reasons := _obstacles(export):
        # TRL's parser wants a number, stops here, and shows the text in its message.
        rank = f"not for trl, {' and '.join(reasons)}: run python train.py {method}"
    return {
        "model_name_or_path": export.base,
        "model_revision": adapter["revision"],
        "load_in_4bit": memory.base_bits == 4 or None,
        "load_in_8bit": memory.base_bits == 8 or None,
        "output_dir": f"{method}-output",
        "learning_rate": export.one_rate(method),
        **export.optimizer,
        "per_device_train_batch_size": None if method == "grpo" else memory.train_batch,
        "max_length": None if method == "grpo" else memory.train_length,
        "assistant_only_loss": (method == "sft" and export.counts_assistant_only) or None,
        **_loss_fields(export.plan, method),
        "use_peft": True,
        "lora_r": rank,
        "lora_alpha": adapter["lora_alpha"],
        "lora_dropout": adapter["lora_dropout"],
        "lora_target_modules": targets,
        "lora_target_parameters": adapter["target_parameters"],
        "lora_modules_to_save": adapter["modules_to_save"],
    }


def _probed(plan: Plan) -> ObjectiveSettings | None:
    """Settings of the loss that was probed; `None` without probes or where the plan has none."""
    given = plan.provenance.settings.get("objective")
    if plan.provenance.probes.objective == "none" or not isinstance(given, Mapping):
        return None
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
    try:
        return build(ObjectiveSettings, values)
    except (UsageError, TypeError, ValueError, AttributeError):  # edited by hand
        return None


def _loss_fields(plan: Plan, method: str) -> dict[str, object]:
    """The probed loss and how its completions were sampled, as arguments of TRL's trainers.

    Empty where another loss than that of the method was probed.
    """
    found = _probed(plan)
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
    batch, rewards = plan.memory.train_batch, _reward_funcs(found)
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


def _how_to_run(export: Export, method: str) -> list[str]:
    (full, lora), loss = export.rates(method), _loss_fields(export.plan, method)
    probed, rewards = export.plan.provenance.probes.objective, ""
    if method == "grpo" and not loss.get("reward_funcs"):
        rewards = " --reward_funcs REWARD"
    lines = [
        f"python train.py {method} --config {method}.yaml --dataset_name DATA{rewards}",
        f"  trains the plan, full modules at {full:g} and adapters at {lora:g}; --full_lr and",
        "  --lora_lr change these, and learning_rate and lora_* below are not read.",
    ]
    if reasons := _obstacles(export):
        lines.append(f"Not for the trl command: {' and '.join(reasons)}. It stops at lora_r.")
    else:
        lines += [
            f"trl {method} --config {method}.yaml --dataset_name DATA{rewards}",
            "  trains the same modules, all of them at learning_rate, on a model in float32"
            f"{export.float32_base}:",
            "  with dtype: bfloat16 it would keep full modules in 16 bits and lose small steps.",
        ]
    if loss:
        lines.append("Loss and sampling are those of the probes.")
    elif probed != "none" and method != "sft":
        lines.append(f"The probes were of {probed}, not of {method}.")
    if export.full_lr is None or export.lora_lr is None:
        lines.append(f"Rates: {export.suggested(method).full.source}.")
    return lines


def _remarks(export: Export) -> Iterator[str]:
    if reasons := _obstacles(export):
        yield f"The trl command cannot run this plan ({'; '.join(reasons)}); train.py does."
    found = _probed(export.plan)
    if found is None or found.objective != "grpo":
        return
    if not _reward_funcs(found):
        yield (
            "No reward is in grpo.yaml: the probed completions had theirs from "
            f"{'a file' if found.rollouts else 'a function in memory'}. "
            "Give --reward_funcs package.module:function."
        )
    if found.stop:
        yield (
            f"TRL has no stop texts: training does not end completions at "
            f"{', '.join(map(repr, found.stop))}, as the probes did."
        )


EXPORTER = Exporter(
    name="trl",
    summary="train.py, sft.yaml, dpo.yaml, grpo.yaml: TRL, with a learning rate for each group",
    # TRL computes losses from the weight of the head, past an adapter, and refuses one there.
    limits=Limits(trainer="TRL", head=False),
    files=_files,
    folder=True,
    optimizer=True,
    usage="python {out}/train.py {objective} --config {out}/{objective}.yaml --dataset_name DATA",
    remarks=_remarks,
    methods=METHODS,
)
