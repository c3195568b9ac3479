"""The process that computes rewards, `python -m hlscore.rollouts.reward_worker FD`.

It answers requests over a socket: one line of JSON per request and per answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import inspect
import json
import math
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hlscore.errors import HlscoreError, RewardError, UsageError, first_line
from hlscore.rollouts.verifiers import is_builtin, verify_all
from hlscore.wording import count

# Columns of the data that are not given to rewards under their own names.
NOT_COLUMNS = ("prompt", "completion", "completion_ids")
# What a built-in verifier may allocate: `9**9**9**9` takes all there is.
_MEMORY_BYTES = 4 * 2**30


@dataclass(frozen=True, kw_only=True)
class Completions:
    """Completions to judge, in lists of equal length."""

    prompts: list[Any]  # texts or conversations, repeated for each completion
    completions: list[Any]  # texts or conversations
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]  # the other columns of the data

    def one(self, index: int) -> Completions:
        """A single completion as a batch."""
        return Completions(
            prompts=[self.prompts[index]],
            completions=[self.completions[index]],
            completion_ids=[self.completion_ids[index]],
            columns={name: [values[index]] for name, values in self.columns.items()},
        )


def load_function(name: str) -> Callable[..., Any]:
    """Import a reward function, `package.module:function`."""
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
            raise UsageError(
                f"--reward is '{name}', but '{module_name}' has no '{path}'.",
                hint="Name a function of that module.",
            )
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(
            f"--reward is '{name}', which is not a function but of type {type(found).__name__}."
        )
    function: Callable[..., Any] = found
    return function


def call_function(
    name: str, function: Callable[..., Any], batch: Completions
) -> list[float | None]:
    """Call a reward function, or await a coroutine function, as TRL does; check what it returns."""
    given = batch.columns | {
        "prompts": batch.prompts,
        "completions": batch.completions,
        "completion_ids": batch.completion_ids,
        "trainer_state": None,
        "log_extra": lambda *_, **__: None,
        "log_metric": lambda *_, **__: None,
    }
    what = f"The reward function '{name}'"
    hint = "Return one number, or None, per completion."
    try:
        returned = function(**given)
        if inspect.isawaitable(returned):

            async def awaited() -> Any:
                return await returned

            returned = asyncio.run(awaited())
        if isinstance(returned, Iterable) and not isinstance(returned, str | bytes | Mapping):
            returned = list(returned)
    except BaseException as error:  # sys.exit in a reward function must not end the worker
        frames = traceback.extract_tb(error.__traceback__)
        kind, line = type(error).__name__, first_line(error)
        raise RewardError(
            f"{what} raised {line if line.startswith(kind) else f'{kind}: {line}'}",
            hint=f"It failed in {Path(frames[-1].filename).name}, line {frames[-1].lineno}."
            if len(frames) > 1
            else "It is called with prompts, completions, completion_ids and the columns by name.",
        ) from error
    if not isinstance(returned, list):
        raise RewardError(f"{what} returned a {type(returned).__name__}, not a list.", hint=hint)
    found, wanted = len(returned), len(batch.completions)
    if found != wanted:
        raise RewardError(
            f"{what} returned {count(found, 'reward')} for {count(wanted, 'completion')}."
        )
    rewards: list[float | None] = []
    for index, reward in enumerate(returned):
        if reward is None:
            rewards.append(None)
            continue
        try:
            if isinstance(reward, str | bytes):
                raise TypeError
            number = float(reward)
        except Exception as error:
            kind = type(reward).__name__
            raise RewardError(
                f"{what} returned a {kind} for completion {index}, not a number.", hint=hint
            ) from error
        if not math.isfinite(number):
            raise RewardError(
                f"{what} returned {number} for completion {index}.",
                hint="Return None where a completion cannot be judged.",
            )
        rewards.append(number)
    return rewards


def _work(requests: socket.socket) -> None:
    """Answer requests until the parent closes the socket; the first one names the rewards."""
    requests.set_inheritable(False)
    functions: dict[str, Callable[..., Any]] = {}
    with open(os.devnull, "w") as nothing:  # noqa: PTH123 - a device
        for line in requests.makefile("rb"):
            request = json.loads(line)
            answer: dict[str, Any] = {}
            # End this process when it hangs and no parent is left to kill it, even inside C code.
            faulthandler.dump_traceback_later(request["timeout"] * 2, exit=True, file=nothing)
            try:
                if "batch" not in request:
                    # Importing all that rewards need is no part of the first batch's time.
                    sys.path += [path for path in request["path"] if path not in sys.path]
                    names = request["rewards"]
                    if "math" in names:
                        import math_verify  # noqa: F401
                    functions = {
                        name: load_function(name) for name in names if not is_builtin(name)
                    }
                else:
                    name, batch = request["reward"], Completions(**request["batch"])
                    if name in functions:
                        answer["rewards"] = call_function(name, functions[name], batch)
                    else:
                        with limited_memory():
                            answer["rewards"] = verify_all(
                                name, batch.prompts, batch.completions, batch.columns
                            )
            except HlscoreError as error:
                answer["error"] = type(error).__name__, error.message, error.hint
            finally:
                faulthandler.cancel_dump_traceback_later()
            requests.sendall(json.dumps(answer).encode() + b"\n")


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Limit what can be allocated beyond the present address space, on Linux."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + _MEMORY_BYTES
        if soft != resource.RLIM_INFINITY:
            limit = min(limit, soft)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    _work(socket.socket(fileno=int(sys.argv[1])))
