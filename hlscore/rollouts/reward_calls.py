"""Rewards by name, and how one is called: the part that parent and child share."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hlscore.errors import RewardError, UsageError, first_line
from hlscore.rollouts.verifiers import VERIFIERS, find_verifier, is_builtin

_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
NOT_COLUMNS = ("prompt", "completion", "completion_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """Completions to judge, in lists of equal length.

    Attributes:
        prompts: Texts or conversations; the same one once per completion.
        completions: Texts or conversations.
        completion_ids: Tokens of each completion.
        columns: The other columns of the data, one value per completion.
    """

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]

    def one(self, index: int) -> Completions:
        """Take a single completion out."""
        return Completions(
            prompts=[self.prompts[index]],
            completions=[self.completions[index]],
            completion_ids=[self.completion_ids[index]],
            columns={name: [values[index]] for name, values in self.columns.items()},
        )

    def named(self) -> dict[str, Any]:
        """Give the lists by name, as they travel to the worker."""
        return {
            "prompts": self.prompts,
            "completions": self.completions,
            "completion_ids": self.completion_ids,
            "columns": self.columns,
        }


def check_names(names: Iterable[str]) -> None:
    """Check the names of rewards, without importing or starting anything.

    Args:
        names: Names of built-in verifiers, or `package.module:function`.
    """
    for name in names:
        if is_builtin(name):
            find_verifier(name)
        elif not _FUNCTION.fullmatch(name):
            known = ", ".join(VERIFIERS)
            raise UsageError(
                f"--reward is '{name}'.",
                hint=f"Built in are {known} and regex:PATTERN; a function of your own is "
                "package.module:function.",
            )


def load_function(name: str) -> Callable[..., Any]:
    """Import a reward function."""
    module_name, _, path = name.partition(":")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))  # behind all others: nothing there may replace them
    try:
        found: Any = import_module(module_name)
    except BaseException as error:  # a module can do anything when imported, also exit
        raise UsageError(
            f"--reward is '{name}', and '{module_name}' cannot be imported: {first_line(error)}",
            hint="Modules are looked up in the current directory and among installed packages.",
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"--reward is '{name}', but '{module_name}' has no '{path}'.")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(
            f"--reward is '{name}', but that is no function: it is of type {type(found).__name__}."
        )
    function: Callable[..., Any] = found
    return function


def call_function(name: str, function: Callable[..., Any], batch: Completions) -> list[Any]:
    """Call a reward function as TRL does, and check what it gives.

    Args:
        function: The function; a coroutine function is awaited.

    Returns:
        One number or `None` per completion.
    """
    columns = {key: value for key, value in batch.columns.items() if key not in NOT_COLUMNS}
    given = {
        **columns,
        "prompts": batch.prompts,
        "completions": batch.completions,
        "completion_ids": batch.completion_ids,
        "trainer_state": None,
        "log_extra": _log_nothing,
        "log_metric": _log_nothing,
    }
    try:
        returned = function(**given)
        if inspect.isawaitable(returned):
            returned = asyncio.run(_awaited(returned))
    except BaseException as error:  # sys.exit in a reward function must not end the worker
        raise RewardError(
            f"The reward function '{name}' raised {_named(error)}", hint=_place(error)
        ) from error
    return _checked(name, returned, len(batch.completions))


async def _awaited(returned: Any) -> Any:
    return await returned


def _log_nothing(*_args: Any, **_named_args: Any) -> None:
    pass


def _named(error: BaseException) -> str:
    kind, line = type(error).__name__, first_line(error)
    return line if line.startswith(kind) else f"{kind}: {line}"


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if len(frames) < 2:  # the call itself did not fit
        return "It is called with prompts, completions, completion_ids and the columns by name."
    return f"It failed in {Path(frames[-1].filename).name}, line {frames[-1].lineno}."


def _checked(name: str, returned: Any, count: int) -> list[float | None]:
    if isinstance(returned, str | bytes | Mapping) or not isinstance(returned, Iterable):
        raise RewardError(
            f"The reward function '{name}' returned a {type(returned).__name__}, no list.",
            hint="It gives one number, or None, per completion.",
        )
    try:
        rewards = list(returned)
    except Exception as error:
        raise RewardError(f"The reward function '{name}' raised {_named(error)}") from error
    if len(rewards) != count:
        raise RewardError(
            f"The reward function '{name}' returned {len(rewards)} rewards for {count} completions."
        )
    return [_number(name, index, reward) for index, reward in enumerate(rewards)]


def _number(name: str, index: int, reward: Any) -> float | None:
    if reward is None:
        return None
    try:
        if isinstance(reward, str | bytes):
            raise TypeError
        value = float(reward)
    except Exception as error:
        raise RewardError(
            f"The reward function '{name}' returned a {type(reward).__name__} for completion "
            f"{index}, no number.",
            hint="It gives one number, or None, per completion.",
        ) from error
    if not math.isfinite(value):
        raise RewardError(
            f"The reward function '{name}' returned {value} for completion {index}.",
            hint="Give None where a completion cannot be judged.",
        )
    return value


def name_of(reward: str | Callable[..., Sequence[float | None]]) -> str:
    """Name a reward for messages."""
    if isinstance(reward, str):
        return reward
    return str(getattr(reward, "__name__", type(reward).__name__))
