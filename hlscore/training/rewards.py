"""Rewards and rows for TRL's trainers, as `rank` read them.

`numeric` and the other verifiers here are what
`trl grpo --reward_funcs hlscore.training.rewards.numeric` imports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hlscore.artifacts.plan import Plan
from hlscore.errors import DataError
from hlscore.rollouts.reward_worker import NOT_COLUMNS, load_function
from hlscore.rollouts.rewards import check_rewards
from hlscore.rollouts.verifiers import is_builtin, verify_all

if TYPE_CHECKING:
    from datasets import Dataset

Reward = Callable[..., Sequence[float | None]]

_HERE = f"{__name__}."
# Columns of text: the probes read numbers there as text, and tokenizers take nothing else.
_TEXTS = ("text", "prompt", "completion", "chosen", "rejected")


def _verifier(name: str) -> Reward:
    """A built-in verifier as a function that TRL calls."""

    def reward(
        prompts: Sequence[Any], completions: Sequence[Any], **given: Any
    ) -> list[float | None]:
        columns = {key: value for key, value in given.items() if key not in NOT_COLUMNS}
        return verify_all(name, prompts, completions, columns)

    reward.__name__ = name  # TRL logs rewards by their names
    return reward


math = _verifier("math")
numeric = _verifier("numeric")
exact = _verifier("exact")
regex = _verifier("regex")
json = _verifier("json")


def reward_functions(names: Sequence[str]) -> list[Reward]:
    """One function per name, for `reward_funcs` of TRL's GRPOTrainer.

    Names are values of `--reward`: built-in verifiers, or `package.module:function`. A dotted path
    without a colon, as TRL writes it, is read too.
    """
    plain = list(map(_plain, names))
    check_rewards(plain)
    return [_verifier(name) if is_builtin(name) else load_function(name) for name in plain]


def judgeable(data: Dataset, names: Sequence[str]) -> Dataset:
    """The rows that `rank` samples from: those whose answers a built-in verifier can judge.

    With a function among the rewards, every row counts.
    """
    plain = list(map(_plain, names))
    if not all(map(is_builtin, plain)):
        return data
    columns = {name: data[name] for name in data.column_names if name not in NOT_COLUMNS}
    judged = [verify_all(name, data["prompt"], [""] * len(data), columns) for name in plain]
    kept = [place for place, row in enumerate(zip(*judged, strict=True)) if set(row) != {None}]
    if not kept:
        raise DataError(
            f"No row has an answer that the reward {', '.join(plain)} can judge.",
            hint="Check the column of answers.",
        )
    return data if len(kept) == len(data) else data.select(kept)


def as_probed(data: Dataset, plan: Plan) -> Dataset:
    """The rows with the columns that the probes had.

    There is a column for each role that the plan's `--column` options name; the columns that were
    there stay, for reward functions. Numbers in columns of text become text.
    """
    from datasets import Value

    there = set(data.column_names)
    read = plan.provenance.settings.get("data")
    named = read.get("columns") if isinstance(read, Mapping) else None
    for role, column in (named if isinstance(named, Mapping) else {}).items():
        if column in there and column != role:
            values = data[column]
            data = data.remove_columns(role) if role in there else data
            data = data.add_column(role, list(values))
    for role in _TEXTS:
        kind = data.features.get(role)
        if isinstance(kind, Value) and kind.dtype.startswith(("int", "uint", "float")):
            texts = [None if value is None else str(value) for value in data[role]]
            data = data.remove_columns(role).add_column(role, texts)
    return data


def _plain(name: str) -> str:
    """A name as `--reward` takes it."""
    if is_builtin(name) or ":" in name:
        return name
    if name.startswith(_HERE):
        return name.removeprefix(_HERE)
    module, _, function = name.rpartition(".")
    return f"{module}:{function}" if module else name
