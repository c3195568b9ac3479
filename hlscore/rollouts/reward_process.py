"""Rewards of completions, computed in a process of their own.

Completions are untrusted text and reward functions are foreign code: computing a reward can take
for ever, end the process, or print. `RewardProcess` in the main process therefore asks a worker,
`python -m hlscore.rollouts.reward_process FD`, over a socket: one line of JSON per request and per
answer. A worker that does not answer in time is killed, and the next batch starts another.
`multiprocessing` and the pools built on it would import the user's script again in the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import inspect
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hlscore.errors import DataError, HlscoreError, RewardError, UsageError, first_line
from hlscore.inputs.formats import LARGEST_REWARD
from hlscore.rollouts.verifiers import VERIFIERS, find_verifier, is_builtin, verify_all

Reward = str | Callable[..., Sequence[float | None]]
NOT_COLUMNS = ("prompt", "completion", "completion_ids")

_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_ERRORS: dict[str, type[HlscoreError]] = {
    kind.__name__: kind for kind in (DataError, RewardError, UsageError)
}
# Importing the module of a reward function may load a reward model.
_START_SECONDS = 300.0
_END_SECONDS = 2.0
# For one completion with a built-in verifier, after the whole batch took too long.
_SINGLE_SECONDS = 10.0
# Operating systems count waits in milliseconds and 32 bits.
_LONGEST_SECONDS = 1e6
# What a built-in verifier may allocate: `9**9**9**9` takes all there is.
_MEMORY_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """Completions to judge, in lists of equal length.

    Attributes:
        prompts: Texts or conversations, repeated for each completion.
        completions: Texts or conversations.
        completion_ids: Token ids of each completion.
        columns: The other columns of the data, one value per completion.
    """

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]

    def one(self, index: int) -> Completions:
        """A single completion as a batch."""
        return Completions(
            prompts=[self.prompts[index]],
            completions=[self.completions[index]],
            completion_ids=[self.completion_ids[index]],
            columns={name: [values[index]] for name, values in self.columns.items()},
        )


def name_of(reward: Reward) -> str:
    """Name of a reward for messages."""
    if isinstance(reward, str):
        return reward
    return str(getattr(reward, "__name__", type(reward).__name__))


def check_rewards(rewards: Sequence[Reward], weights: Sequence[float] = ()) -> None:
    """Check rewards and their weights, without importing or starting anything."""
    for name in rewards:
        if not isinstance(name, str):
            continue
        if is_builtin(name):
            find_verifier(name)
        elif not _FUNCTION.fullmatch(name):
            raise UsageError(
                f"--reward is '{name}'.",
                hint=f"Built-in rewards are {', '.join(VERIFIERS)} and regex:PATTERN; name your "
                "own function as package.module:function.",
            )
    if not rewards:
        raise UsageError("There is no reward.", hint="Give one with --reward, such as `math`.")
    if weights and len(weights) != len(rewards):
        raise UsageError(
            f"There are {len(weights)} weights for {len(rewards)} rewards.",
            hint="Give one --reward-weight per --reward, or none at all.",
        )
    for weight in weights:
        if not math.isfinite(weight):
            raise UsageError(f"--reward-weight is {weight}.", hint="Give a finite number.")


class RewardProcess:
    """Judges completions; named rewards run in a worker process.

    Args:
        rewards: Names of built-in verifiers, `package.module:function`, or functions. Functions
            run in a thread of this process.
        weights: One weight per reward; by default all are 1.
        timeout: Seconds that one reward may take for one batch.

    Attributes:
        hung: Number of completions that a built-in verifier timed out on; their reward is 0.0.
    """

    def __init__(
        self, rewards: Sequence[Reward], *, weights: Sequence[float] = (), timeout: float = 60.0
    ) -> None:
        check_rewards(rewards, weights)
        if not timeout > 0:
            raise UsageError(f"--reward-timeout is {timeout:g}.", hint="Give seconds above 0.")
        self._rewards = list(rewards)
        self._names = [reward for reward in self._rewards if isinstance(reward, str)]
        self._weights = [float(weight) for weight in weights] or [1.0] * len(self._rewards)
        self._timeout = min(timeout, _LONGEST_SECONDS)
        self._worker: _Worker | None = None
        self.hung = 0

    @property
    def builtin(self) -> bool:
        """Whether all rewards are built-in verifiers."""
        return len(self._names) == len(self._rewards) and all(map(is_builtin, self._names))

    def __enter__(self) -> Self:
        if self._names:
            self._worker = _Worker(self._names)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def judge(self, batch: Completions) -> list[float | None]:
        """Judge completions.

        Returns:
            Per completion the weighted sum of its rewards, over those that are not `None`; `None`
            where all are.
        """
        if not batch.completions:
            return []
        judged = [
            self._by_name(reward, batch)
            if isinstance(reward, str)
            else self._in_thread(reward, batch)
            for reward in self._rewards
        ]
        totals: list[float | None] = []
        for row in zip(*judged, strict=True):
            given = [
                weight * reward
                for weight, reward in zip(self._weights, row, strict=True)
                if reward is not None
            ]
            total = sum(given)
            if given and not abs(total) <= LARGEST_REWARD:
                raise RewardError(f"The weighted sum of the rewards of a completion is {total}.")
            totals.append(total if given else None)
        return totals

    def _by_name(self, name: str, batch: Completions) -> list[float | None]:
        worker = self._worker = self._worker or _Worker(self._names)
        try:
            return worker.judge(self._names.index(name), batch, self._timeout)
        except _NoAnswerError as gone:
            if not is_builtin(name):
                if gone.late:
                    raise _too_slow(name, batch, self._timeout) from gone
                raise RewardError(
                    f"The reward function '{name}' ended its process ({gone})."
                ) from gone
        finally:
            if worker.closed:
                self._worker = None
        # Find the completions that the verifier hangs at: they are not right.
        limit = min(self._timeout, _SINGLE_SECONDS)
        rewards: list[float | None] = []
        single: _Worker | None = None
        try:
            for index in range(len(batch.completions)):
                single = single or _Worker([name])
                try:
                    rewards += single.judge(0, batch.one(index), limit)
                except _NoAnswerError:
                    single = None
                    self.hung += 1
                    rewards.append(0.0)
        finally:
            if single is not None:
                single.close()
        return rewards

    def _in_thread(
        self, function: Callable[..., Sequence[float | None]], batch: Completions
    ) -> list[float | None]:
        name = name_of(function)
        outcome: list[list[float | None] | RewardError] = []

        def call() -> None:
            try:
                outcome.append(_call_function(name, function, batch))
            except RewardError as error:
                outcome.append(error)

        thread = threading.Thread(target=call, name=f"reward {name}", daemon=True)
        thread.start()
        thread.join(self._timeout)
        if not outcome:
            raise _too_slow(name, batch, self._timeout)
        if isinstance(outcome[0], RewardError):
            raise outcome[0]
        return outcome[0]


def _too_slow(name: str, batch: Completions, timeout: float) -> RewardError:
    return RewardError(
        f"The reward function '{name}' took longer than {timeout:g} s for "
        f"{len(batch.completions)} completions.",
        hint="Give it more time with --reward-timeout.",
    )


class _NoAnswerError(Exception):
    """The worker gave no answer and is gone.

    Attributes:
        late: Whether it took too long; otherwise it died.
    """

    def __init__(self, *, late: bool, status: int | None = None) -> None:
        how = f"exit status {status}"
        if status is not None and status < 0:
            with contextlib.suppress(ValueError):
                how = f"signal {signal.Signals(-status).name}"
        super().__init__("late" if late else how)
        self.late = late


class _Worker:
    """A worker process and the socket to it."""

    def __init__(self, rewards: Sequence[str]) -> None:
        self._socket, other = socket.socketpair()
        with other:
            self._process = subprocess.Popen(  # noqa: S603 - this module
                [sys.executable, "-uPm", "hlscore.rollouts.reward_process", str(other.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what reward functions print must not mix with results
                pass_fds=[other.fileno()],
                start_new_session=True,  # Ctrl-C is for the parent, and killing is for the group
            )
        start = {"rewards": list(rewards), "path": sys.path, "timeout": _START_SECONDS}
        try:
            self._ask(start, _START_SECONDS)
        except _NoAnswerError as gone:
            how = f"did not start within {_START_SECONDS:g} s" if gone.late else f"ended ({gone})"
            raise RewardError(f"The process for the rewards {', '.join(rewards)} {how}.") from gone
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def closed(self) -> bool:
        """Whether the process is gone."""
        return self._process.returncode is not None

    def judge(self, reward: int, batch: Completions, timeout: float) -> list[float | None]:
        """Judge completions with one reward."""
        fields = {name: getattr(batch, name) for name in Completions.__slots__}
        request = {"reward": reward, "batch": fields, "timeout": timeout}
        rewards: list[float | None] = self._ask(request, timeout)["rewards"]
        return rewards

    def _ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        line = json.dumps(request, default=str, skipkeys=True).encode() + b"\n"
        deadline = time.monotonic() + timeout
        received = bytearray()
        try:
            self._socket.settimeout(timeout)  # of `sendall`: for all of it together
            self._socket.sendall(line)
            while not received.endswith(b"\n"):
                self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
                part = self._socket.recv(2**20)
                if not part:
                    raise EOFError
                received += part
        except TimeoutError as error:
            self.kill()
            raise _NoAnswerError(late=True) from error
        except (OSError, EOFError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):  # for its own exit status
                self._process.wait(_END_SECONDS)
            self.kill()
            raise _NoAnswerError(late=False, status=self._process.returncode) from error
        except BaseException:  # Ctrl-C: nobody waits for the answer any more
            self.kill()
            raise
        answer: dict[str, Any] = json.loads(received)
        if "error" in answer:
            kind, message, hint = answer["error"]
            raise _ERRORS.get(kind, RewardError)(message, hint=hint)
        return answer

    def close(self) -> None:
        """End the worker: at its own pace when it is idle, else by force."""
        self._socket.close()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the worker and all that it started."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._socket.close()


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
            raise UsageError(f"--reward is '{name}', but '{module_name}' has no '{path}'.")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(
            f"--reward is '{name}', which is not a function but of type {type(found).__name__}."
        )
    function: Callable[..., Any] = found
    return function


def _call_function(
    name: str, function: Callable[..., Any], batch: Completions
) -> list[float | None]:
    """Call a reward function, or await a coroutine function, as TRL does; check what it returns."""

    async def awaited(returned: Any) -> Any:
        return await returned

    def named(error: BaseException) -> str:
        kind, line = type(error).__name__, first_line(error)
        return line if line.startswith(kind) else f"{kind}: {line}"

    columns = {key: value for key, value in batch.columns.items() if key not in NOT_COLUMNS}
    given = {
        **columns,
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
            returned = asyncio.run(awaited(returned))
    except BaseException as error:  # sys.exit in a reward function must not end the worker
        frames = traceback.extract_tb(error.__traceback__)
        raise RewardError(
            f"{what} raised {named(error)}",
            hint=f"It failed in {Path(frames[-1].filename).name}, line {frames[-1].lineno}."
            if len(frames) > 1
            else "It is called with prompts, completions, completion_ids and the columns by name.",
        ) from error
    if isinstance(returned, str | bytes | Mapping) or not isinstance(returned, Iterable):
        raise RewardError(f"{what} returned a {type(returned).__name__}, not a list.", hint=hint)
    try:
        rewards = list(returned)
    except Exception as error:
        raise RewardError(f"{what} raised {named(error)}") from error
    count = len(batch.completions)
    if len(rewards) != count:
        raise RewardError(f"{what} returned {len(rewards)} rewards for {count} completions.")
    for index, reward in enumerate(rewards):
        if reward is None:
            continue
        try:
            if isinstance(reward, str | bytes):
                raise TypeError
            rewards[index] = float(reward)
        except Exception as error:
            kind = type(reward).__name__
            raise RewardError(
                f"{what} returned a {kind} for completion {index}, not a number.", hint=hint
            ) from error
        if not math.isfinite(rewards[index]):
            raise RewardError(
                f"{what} returned {rewards[index]} for completion {index}.",
                hint="Return None where a completion cannot be judged.",
            )
    return rewards


def _work(requests: socket.socket) -> None:
    """Answer requests until the parent closes the socket; the first one names the rewards."""
    requests.set_inheritable(False)
    judges: list[Callable[[Completions], list[float | None]]] = []
    for line in requests.makefile("rb"):
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            with _watchdog(request["timeout"]):
                if "batch" in request:
                    judge = judges[request["reward"]]
                    answer["rewards"] = judge(Completions(**request["batch"]))
                else:
                    sys.path += [path for path in request["path"] if path not in sys.path]
                    judges = [_judge_of(name) for name in request["rewards"]]
        except HlscoreError as error:
            answer["error"] = type(error).__name__, error.message, error.hint
        requests.sendall(json.dumps(answer).encode() + b"\n")


def _judge_of(name: str) -> Callable[[Completions], list[float | None]]:
    if not is_builtin(name):
        function = load_function(name)
        return lambda batch: _call_function(name, function, batch)
    if name == "math":
        import math_verify  # noqa: F401 - slow, and not part of the first batch's time

    def verify(batch: Completions) -> list[float | None]:
        with _limited_memory():
            return verify_all(name, batch.prompts, batch.completions, batch.columns)

    return verify


@contextlib.contextmanager
def _watchdog(timeout: float) -> Iterator[None]:
    """End this process when it hangs and no parent is left to kill it, even inside C code."""
    with open(os.devnull, "w") as nothing:  # noqa: PTH123 - a device
        seconds = min(timeout * 2, _LONGEST_SECONDS)
        faulthandler.dump_traceback_later(seconds, exit=True, file=nothing)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
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
