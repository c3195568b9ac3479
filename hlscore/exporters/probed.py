"""What a plan's probes saw, in the terms of TRL: loss, sampling, rewards and columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import cast

from hlscore.artifacts.plan import Plan
from hlscore.errors import UsageError
from hlscore.rollouts.verifiers import VERIFIERS, is_builtin
from hlscore.settings import ObjectiveSettings

_REWARDS = "hlscore.training.rewards"


def probed_objective(plan: Plan) -> ObjectiveSettings | None:
    """Settings of the loss that was probed.

    Args:
        plan: The plan.

    Returns:
        The settings; `None` where nothing was probed or the plan does not hold them.
    """
    given = _part(plan, "objective")
    known = {item.name for item in fields(ObjectiveSettings)} & set(given)
    if plan.provenance.probes.objective == "none" or not known:
        return None
    values = {
        name: tuple(value) if isinstance(value := given[name], list) else value for name in known
    }
    try:
        return ObjectiveSettings(**values)  # type: ignore[arg-type]
    except (UsageError, TypeError, ValueError, AttributeError):  # edited by hand
        return None


def probed_columns(plan: Plan) -> dict[str, str]:
    """The columns that `--column` named: roles, and what the data call them.

    Args:
        plan: The plan.

    Returns:
        Columns by role.
    """
    given = _part(plan, "data").get("columns")
    if not isinstance(given, Mapping):
        return {}
    return {str(role): str(column) for role, column in given.items()}


def _part(plan: Plan, name: str) -> Mapping[str, object]:
    part = plan.provenance.settings.get(name)
    return cast("Mapping[str, object]", part) if isinstance(part, Mapping) else {}


def reward_funcs(found: ObjectiveSettings) -> list[str]:
    """The probed rewards as `reward_funcs` of TRL.

    Args:
        found: Settings of the loss that was probed.

    Returns:
        Import paths, as both `trl grpo` and the exported script read them; a pattern, and a
        function inside a class, in the form of `--reward`, which the script alone reads. Empty
        where one of them cannot be imported: a function that was given in Python.
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


def loss_fields(plan: Plan, method: str) -> dict[str, object]:
    """The probed loss and how its completions were sampled, as arguments of TRL's trainers.

    Args:
        plan: The plan.
        method: `sft`, `dpo` or `grpo`.

    Returns:
        Fields of TRL's configuration of that method; empty where another loss was probed.
    """
    found = probed_objective(plan)
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
    rewards = reward_funcs(found)
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
