"""The pipes to a reward worker, with a limit on how long an answer may take."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

from hlscore.errors import DataError, HlscoreError, RewardError, UsageError
from hlscore.rollouts.reward_calls import Completions

# Importing the module of a reward function can mean to load a reward model.
_START_SECONDS = 300.0
_END_SECONDS = 2.0
_CHUNK = 2**16
_KINDS: dict[str, type[HlscoreError]] = {
    kind.__name__: kind for kind in (DataError, RewardError, UsageError)
}


class NoAnswer(Exception):  # noqa: N818 - a message to the caller
    """The worker gave no answer, and is gone.

    Attributes:
        late: Whether it took too long; else it died.
        status: Its exit status when it died.
    """

    def __init__(self, *, late: bool, status: int | None = None) -> None:
        super().__init__("late" if late else f"exit status {status}")
        self.late = late
        self.status = status


class RewardChild:
    """A worker process.

    Args:
        rewards: Names of the rewards that it judges with.
    """

    def __init__(self, rewards: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hlscore.rollouts.reward_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the parent, and killing is for the group
        )
        start = {"rewards": list(rewards), "path": sys.path, "timeout": _START_SECONDS}
        try:
            _result(self._exchange(start, _START_SECONDS))
        except NoAnswer as gone:
            how = f"did not start within {_START_SECONDS:g} s" if gone.late else _death(gone)
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
        """Judge completions with one reward.

        Args:
            timeout: How long it may take, in seconds.

        Raises:
            NoAnswer: It took too long, or died.
        """
        request = {"reward": reward, "batch": batch.named(), "timeout": timeout}
        rewards: list[float | None] = _result(self._exchange(request, timeout))["rewards"]
        return rewards

    def _exchange(self, request: dict[str, Any], timeout: float) -> bytes:
        line = json.dumps(request, default=str, skipkeys=True).encode() + b"\n"
        writing, reading = self._process.stdin, self._process.stdout
        if writing is None or reading is None:  # only without pipes
            raise AssertionError
        try:
            return _converse(writing, reading, line, time.monotonic() + timeout)
        except TimeoutError as error:
            self.kill()
            raise NoAnswer(late=True) from error
        except (OSError, EOFError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):  # for its own exit status
                self._process.wait(_END_SECONDS)
            self.kill()
            raise NoAnswer(late=False, status=self._process.returncode) from error
        except BaseException:  # Ctrl-C: nobody waits for the answer any more
            self.kill()
            raise

    def close(self) -> None:
        """End the worker: at its own pace when it is idle, else by force."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """End the worker and all that it started."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _converse(writing: IO[bytes], reading: IO[bytes], line: bytes, deadline: float) -> bytes:
    """Write a line and read one, both at once, so that full pipes stop neither side."""
    rest = memoryview(line)
    answer = bytearray()
    os.set_blocking(writing.fileno(), False)
    with selectors.DefaultSelector() as ready:
        ready.register(writing, selectors.EVENT_WRITE)
        ready.register(reading, selectors.EVENT_READ)
        while not answer.endswith(b"\n"):
            left = deadline - time.monotonic()
            events = ready.select(left) if left > 0 else []
            if not events:
                raise TimeoutError
            for key, _ in events:
                if key.fileobj is writing:
                    rest = rest[os.write(key.fd, rest[:_CHUNK]) :]
                    if not rest:
                        ready.unregister(writing)
                else:
                    chunk = os.read(key.fd, _CHUNK)
                    if not chunk:
                        raise EOFError
                    answer += chunk
    return bytes(answer)


def _result(line: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        error = answer["error"]
        raise _KINDS.get(error["kind"], RewardError)(error["message"], hint=error["hint"])
    return answer


def _death(gone: NoAnswer) -> str:
    return f"ended ({how_it_ended(gone.status)})"


def how_it_ended(status: int | None) -> str:
    """Put an exit status into words.

    Args:
        status: As of `subprocess`: negative for signals.

    Returns:
        Such as `signal SIGSEGV` or `exit status 3`.
    """
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-status).name}"
    return f"exit status {status}"
