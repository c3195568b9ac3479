"""The process that judges completions: `python -m hlscore.rollouts.reward_worker`.

It reads lines of JSON and answers each with one. The first names the rewards; each further one
is a batch for one of them. Completions are untrusted text, so that judging one can take for ever
or end the process; the parent then starts another.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from hlscore.errors import HlscoreError
from hlscore.rollouts.reward_calls import Completions, call_function, load_function
from hlscore.rollouts.verifiers import is_builtin, verify_all

Judge = Callable[[Completions], list[float | None]]

# How much a built-in verifier may take beyond what is there: `9**9**9**9` takes all there is.
_MEMORY_BYTES = 4 * 2**30
_LONGEST_SECONDS = 1e6


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    requests, answers = _private_pipes()
    first = requests.readline()
    if not first:
        return
    start = json.loads(first)
    sys.path += [path for path in start["path"] if path not in sys.path]
    try:
        with _watchdog(start["timeout"]):
            judges = [_load(name) for name in start["rewards"]]
    except HlscoreError as error:
        _send(answers, _failure(error))
        return
    _send(answers, {"ready": True})
    for line in requests:
        request = json.loads(line)
        with _watchdog(request["timeout"]):
            answer = _answer(judges[request["reward"]], Completions(**request["batch"]))
        _send(answers, answer)


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep the pipes to the parent from prints and reads of reward functions."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return requests, answers


@contextlib.contextmanager
def _watchdog(timeout: float) -> Iterator[None]:
    """End this process when it hangs and no parent is left to do so, even inside C code."""
    with open(os.devnull, "w") as nothing:  # noqa: PTH123 - a device
        faulthandler.dump_traceback_later(
            min(timeout * 2, _LONGEST_SECONDS), exit=True, file=nothing
        )
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _load(name: str) -> Judge:
    if not is_builtin(name):
        function = load_function(name)
        return lambda batch: call_function(name, function, batch)
    if name == "math":
        import math_verify  # noqa: F401 - slow, and no part of the first batch's time
    return lambda batch: _verify(name, batch)


def _verify(name: str, batch: Completions) -> list[float | None]:
    with _limited_memory():
        return verify_all(name, batch.prompts, batch.completions, batch.columns)


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    try:
        import resource

        pages = int(open("/proc/self/statm").read().split()[0])  # noqa: PTH123, SIM115
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + _MEMORY_BYTES
        if soft != resource.RLIM_INFINITY:
            limit = min(limit, soft)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ImportError, OSError, ValueError):  # only Linux can tell
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _answer(judge: Judge, batch: Completions) -> dict[str, Any]:
    try:
        return {"rewards": judge(batch)}
    except HlscoreError as error:
        return _failure(error)


def _failure(error: HlscoreError) -> dict[str, Any]:
    kind = type(error).__name__
    return {"error": {"kind": kind, "message": error.message, "hint": error.hint}}


def _send(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
