"""Rewards of completions, computed in a process of their own.

Completions are untrusted text and reward functions are foreign code: computing a reward can take
for ever, end the process, or print. `RewardProcess` in the main process therefore asks a worker
(`hlscore.rollouts.reward_worker`). A worker that does not answer in time is killed, and the next
batch starts another. `multiprocessing` and the pools built on it, such as pebble, would import the
user's script again in the worker, and kill no processes that a reward function has started.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Self

from hlscore.errors import DataError, HlscoreError, RewardError, UsageError
from hlscore.inputs.formats import LARGEST_REWARD
from hlscore.rollouts.reward_worker import Completions, call_function
from hlscore.rollouts.verifiers import VERIFIERS, find_verifier, is_builtin
from hlscore.settings import ObjectiveSettings
from hlscore.wording import count

Reward = str | Callable[..., Sequence[float | None]]

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


def name_of(reward: Reward) -> str:
    """Name of a reward for messages."""
    if isinstance(reward, str):
        return reward
    return str(getattr(reward, "__name__", type(reward).__name__))


def check_rewards(rewards: Sequence[Reward], weights: Sequence[float] = ()) -> None:
    """Check rewards and their weights, without importing or starting anything."""
    for name in (reward for reward in rewards if isinstance(reward, str)):
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
        there = "There is" if len(weights) == 1 else "There are"
        raise UsageError(
            f"{there} {count(len(weights), 'weight')} for {count(len(rewards), 'reward')}.",
            hint="Give one --reward-weight per --reward, or none at all.",
        )
    for weight in weights:
        if not math.isfinite(weight):
            raise UsageError(f"--reward-weight is {weight}.", hint="Give a finite number.")


class RewardProcess:
    """Judges completions; named rewards run in a worker process, functions in a thread of this one.

    Args:
        weights: One weight per reward; by default all are 1.
        timeout: Seconds that one reward may take for one batch.

    Attributes:
        builtin: Whether all rewards are built-in verifiers.
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
        self.builtin = all(isinstance(reward, str) and is_builtin(reward) for reward in rewards)
        self.hung = 0

    @classmethod
    def of(
        cls, settings: ObjectiveSettings, functions: Mapping[str, Reward] | None = None
    ) -> RewardProcess:
        """What judges completions in a run; functions of the Python API have names there."""
        return cls(
            [(functions or {}).get(name, name) for name in settings.rewards],
            weights=settings.reward_weights,
            timeout=settings.reward_timeout,
        )

    def __enter__(self) -> Self:
        if self._names:
            self._worker = _Worker(self._names)
        return self

    def __exit__(self, *_: object) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def judge(self, batch: Completions) -> list[float | None]:
        """The weighted sum of the rewards of each completion that are not `None`, if any is."""
        if not batch.completions:
            return []
        judged = [self._rewards_of(reward, batch) for reward in self._rewards]
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

    def _rewards_of(self, reward: Reward, batch: Completions) -> list[float | None]:
        name, builtin = name_of(reward), isinstance(reward, str) and is_builtin(reward)
        try:
            if isinstance(reward, str):
                return self._ask(reward, batch, self._timeout)
            return _in_thread(reward, batch, self._timeout)
        except _NoAnswerError as gone:
            if not builtin and gone.late:
                raise RewardError(
                    f"The reward function '{name}' took longer than {self._timeout:g} s for "
                    f"{count(len(batch.completions), 'completion')}.",
                    hint="Give it more time with --reward-timeout.",
                ) from gone
            if not builtin:
                raise RewardError(
                    f"The reward function '{name}' ended its process ({gone})."
                ) from gone
        # Find the completions that the verifier hangs at: they are not right.
        rewards: list[float | None] = []
        for index in range(len(batch.completions)):
            try:
                rewards += self._ask(name, batch.one(index), min(self._timeout, _SINGLE_SECONDS))
            except _NoAnswerError:
                self.hung += 1
                rewards.append(0.0)
        return rewards

    def _ask(self, name: str, batch: Completions, timeout: float) -> list[float | None]:
        self._worker = self._worker or _Worker(self._names)
        try:
            answer = self._worker.ask({"reward": name, "batch": vars(batch)}, timeout)
        except _NoAnswerError:
            self._worker = None
            raise
        rewards: list[float | None] = answer["rewards"]
        return rewards


def _in_thread(
    function: Callable[..., Sequence[float | None]], batch: Completions, timeout: float
) -> list[float | None]:
    name, answer = name_of(function), Future[list[float | None]]()

    def call() -> None:
        try:
            answer.set_result(call_function(name, function, batch))
        except RewardError as error:
            answer.set_exception(error)

    threading.Thread(target=call, name=f"reward {name}", daemon=True).start()
    try:
        return answer.result(timeout)
    except TimeoutError as error:
        raise _NoAnswerError(late=True) from error


class _NoAnswerError(Exception):
    """The worker gave no answer and is gone: it took too long (`late`), or it died."""

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
        self._answers = self._socket.makefile("rb")
        with other:
            self.process = subprocess.Popen(  # noqa: S603 - a module of ours
                [sys.executable, "-uPm", "hlscore.rollouts.reward_worker", str(other.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what reward functions print must not mix with results
                pass_fds=[other.fileno()],
                start_new_session=True,  # Ctrl-C is for the parent, and killing is for the group
            )
        try:
            self.ask({"rewards": list(rewards), "path": sys.path}, _START_SECONDS)
        except _NoAnswerError as gone:
            how = f"did not start within {_START_SECONDS:g} s" if gone.late else f"ended ({gone})"
            raise RewardError(f"The process for the rewards {', '.join(rewards)} {how}.") from gone
        except HlscoreError:
            self.close()
            raise

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        request["timeout"] = timeout
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(json.dumps(request, default=str, skipkeys=True).encode() + b"\n")
            line = self._answers.readline()
            if not line:
                raise EOFError
        except (OSError, EOFError) as error:
            late = isinstance(error, TimeoutError)
            self.close(0 if late else _END_SECONDS)  # one that died has an exit status of its own
            raise _NoAnswerError(late=late, status=self.process.returncode) from error
        except BaseException:  # Ctrl-C: nobody waits for the answer any more
            self.close(0)
            raise
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind, message, hint = answer["error"]
            raise _ERRORS.get(kind, RewardError)(message, hint=hint)
        return answer

    def close(self, seconds: float = _END_SECONDS) -> None:
        """End the worker: at its own pace when it is idle, else by force, with all it started."""
        self._answers.close()
        self._socket.close()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        finally:
            if self.process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
