"""Judge completions with rewards that may be slow, hang or crash, without doing so oneself."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from hlscore.errors import RewardError, UsageError
from hlscore.inputs.formats import LARGEST_REWARD
from hlscore.rollouts.reward_calls import Completions, call_function, check_names, name_of
from hlscore.rollouts.reward_child import NoAnswer, RewardChild, how_it_ended
from hlscore.rollouts.verifiers import is_builtin

__all__ = ["Completions", "Reward", "RewardProcess", "check_rewards"]

Reward = str | Callable[..., Sequence[float | None]]

# For one completion with a built-in verifier, after the whole batch took too long.
_SINGLE_SECONDS = 10.0
# Operating systems count waits in milliseconds and 32 bits.
_LONGEST_SECONDS = 1e6


def check_rewards(names: Sequence[str], weights: Sequence[float] = ()) -> None:
    """Check what the command line was given, without importing or starting anything.

    Args:
        weights: Values of `--reward-weight`: none, or one per reward.
    """
    check_names(names)
    _check_weights(len(names), weights)


def _check_weights(count: int, weights: Sequence[float]) -> None:
    if count == 0:
        raise UsageError("There is no reward.", hint="Give one with --reward, such as `math`.")
    if weights and len(weights) != count:
        raise UsageError(
            f"There are {len(weights)} weights for {count} rewards.",
            hint="Give one --reward-weight per --reward, or none at all.",
        )
    for weight in weights:
        if not math.isfinite(weight):
            raise UsageError(f"--reward-weight is {weight}.", hint="Give a finite number.")


class RewardProcess:
    """Judges completions; named rewards run in a process of their own.

    Args:
        rewards: Names of built-in verifiers, `package.module:function`, or functions. Functions
            run in a thread of this process.
        weights: One weight per reward; by default all are 1.
        timeout: How long one reward may take for one batch, in seconds.

    Attributes:
        hung: How many completions a built-in verifier could not come to an end with; they are
            worth 0.0.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        *,
        weights: Sequence[float] = (),
        timeout: float = 60.0,
    ) -> None:
        self._rewards = list(rewards)
        self._names = [reward for reward in self._rewards if isinstance(reward, str)]
        check_names(self._names)
        _check_weights(len(self._rewards), weights)
        if not timeout > 0:
            raise UsageError(f"--reward-timeout is {timeout:g}.", hint="Give seconds above 0.")
        self._weights = [float(weight) for weight in weights] or [1.0] * len(self._rewards)
        self._timeout = min(timeout, _LONGEST_SECONDS)
        self._child: RewardChild | None = None
        self.hung = 0

    @property
    def builtin(self) -> bool:
        """Whether all rewards are built-in verifiers."""
        return len(self._names) == len(self._rewards) and all(map(is_builtin, self._names))

    def __enter__(self) -> Self:
        if self._names:
            self._child = RewardChild(self._names)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def judge(self, batch: Completions) -> list[float | None]:
        """Judge completions.

        Returns:
            Per completion the weighted sum of its rewards, over those that are not `None`; `None`
            where all are.
        """
        if not batch.completions:
            return []
        columns = [self._by_one(reward, batch) for reward in self._rewards]
        return [self._sum(row) for row in zip(*columns, strict=True)]

    def _sum(self, row: Sequence[float | None]) -> float | None:
        given = [
            weight * reward
            for weight, reward in zip(self._weights, row, strict=True)
            if reward is not None
        ]
        total = sum(given)
        if given and not abs(total) <= LARGEST_REWARD:
            raise RewardError(f"The weighed sum of the rewards of a completion is {total}.")
        return total if given else None

    def _by_one(self, reward: Reward, batch: Completions) -> list[float | None]:
        if not isinstance(reward, str):
            return self._in_thread(reward, batch)
        child = self._child = self._child or RewardChild(self._names)
        try:
            return child.judge(self._names.index(reward), batch, self._timeout)
        except NoAnswer as gone:
            self._child = None  # the next batch starts another
            if not is_builtin(reward):
                raise self._failure(reward, batch, gone) from gone
        except BaseException:
            if child.closed:
                self._child = None
            raise
        return self._one_at_a_time(reward, batch)

    def _failure(self, name: str, batch: Completions, gone: NoAnswer) -> RewardError:
        if gone.late:
            return _too_slow(name, batch, self._timeout)
        return RewardError(
            f"The reward function '{name}' ended its process ({how_it_ended(gone.status)}).",
        )

    def _one_at_a_time(self, name: str, batch: Completions) -> list[float | None]:
        """Find the completions that a verifier hangs at, and give them 0.0: they are not right."""
        limit = min(self._timeout, _SINGLE_SECONDS)
        rewards: list[float | None] = []
        child: RewardChild | None = None
        try:
            for index in range(len(batch.completions)):
                child = child or RewardChild([name])
                try:
                    rewards += child.judge(0, batch.one(index), limit)
                except NoAnswer:
                    child = None
                    self.hung += 1
                    rewards.append(0.0)
        finally:
            if child is not None:
                child.close()
        return rewards

    def _in_thread(
        self, function: Callable[..., Sequence[float | None]], batch: Completions
    ) -> list[float | None]:
        name = name_of(function)
        outcome: list[Any] = []

        def call() -> None:
            try:
                outcome.append(call_function(name, function, batch))
            except RewardError as error:
                outcome.append(error)

        thread = threading.Thread(target=call, name=f"reward {name}", daemon=True)
        thread.start()
        thread.join(min(self._timeout, threading.TIMEOUT_MAX))
        if not outcome:
            raise _too_slow(name, batch, self._timeout)
        if isinstance(outcome[0], RewardError):
            raise outcome[0]
        rewards: list[float | None] = outcome[0]
        return rewards


def _too_slow(name: str, batch: Completions, timeout: float) -> RewardError:
    return RewardError(
        f"The reward function '{name}' took longer than {timeout:g} s for "
        f"{len(batch.completions)} completions.",
        hint="Give it more time with --reward-timeout.",
    )
