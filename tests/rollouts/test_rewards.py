"""Rewards in a process of their own: what they give, and what happens when they fail."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from hlscore.errors import DataError, RewardError, UsageError
from hlscore.rollouts.reward_worker import Completions, limited_memory
from hlscore.rollouts.rewards import Reward, RewardProcess, check_rewards
from hlscore.rollouts.verifiers import verify_all

FUNCTIONS = r"""
import asyncio, os, re, sys

NOT_A_FUNCTION = 3
def length(completions, **_): return [len(text) for text in completions]
def some(completions, **_): return [None if text == "b" else 2 * len(text) for text in completions]
def none(completions, **_): return [None for _ in completions]
def short(completions, **_): return [0.0]
def nan(completions, **_): return [1.0, float("nan")]
def text(completions, **_): return ["1.0", 1.0]
def nothing(**_): pass
def mapping(**_): return {"a": 1, "b": 2}
def multiline(**_): raise ValueError("first line\nsecond line")
def leaves(**_): sys.exit(4)
def dies(**_): os._exit(7)
def crashes(**_): os.kill(os.getpid(), 11)
def narrow(completions): return [0.0]
def loops_in_c(**_): re.match(r"(a+)+$", "a" * 60 + "b")
def process(completions, **_): return [os.getpid()] * len(completions)

def loops(**_):
    while True: pass

def signature(prompts, completions, completion_ids, level, trainer_state, log_extra, log_metric):
    log_extra("x", level)
    log_metric("y", 1.0)
    assert trainer_state is None
    return [float(p == "p" and len(i) == 2 and v == 5)
            for p, i, v in zip(prompts, completion_ids, level, strict=True)]

def columns(level, when, **_):
    return [float(isinstance(l, str)) + 2 * float(w == "2024-05-06") for l, w in zip(level, when)]

def prints(completions, **_):
    print('{"rewards": [9]}')
    os.write(1, b"noise\n")
    os.system("echo more noise")
    assert sys.stdin.read() == ""
    return [1.0] * len(completions)

async def later(completions, **_):
    await asyncio.sleep(0.01)
    return [3.0] * len(completions)

class Callable_:
    async def __call__(self, completions, **_):
        return tuple(4.0 for _ in completions)

instance = Callable_()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def batch(*completions: str, **columns: list[Any]) -> Completions:
    count = len(completions)
    return Completions(
        prompts=["p"] * count,
        completions=list(completions),
        completion_ids=[[1, 2]] * count,
        columns=columns,
    )


def judge(reward: Reward, given: Completions, timeout: float = 20.0) -> list[float | None]:
    with RewardProcess([reward], timeout=timeout) as process:
        return process.judge(given)


def test_functions(mine: Path) -> None:
    rewards: dict[str, list[float | None]] = {
        "length": [1.0, 2.0],
        "none": [None, None],
        "columns": [0.0 + 2, 1.0 + 2],
        "prints": [1.0, 1.0],
        "later": [3.0, 3.0],
        "instance": [4.0, 4.0],
    }
    given = batch("a", "bc", level=[5, np.int64(5)], when=[dt.date(2024, 5, 6)] * 2)
    for name, expected in rewards.items():
        assert judge(f"mine:{name}", given) == expected
    assert judge("mine:signature", batch("a", "bc", level=[5, 6])) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "returned 1 reward for 2 completions."),
        ("nan", "returned nan for completion 1."),
        ("text", "returned a str for completion 0, not a number."),
        ("nothing", "returned a NoneType, not a list."),
        ("mapping", "returned a dict, not a list."),
        ("multiline", "raised ValueError: first line"),
        ("leaves", "raised SystemExit: 4"),
        ("narrow", "raised TypeError: narrow() got an unexpected keyword"),
        ("dies", "ended its process (exit status 7)."),
        ("crashes", "ended its process (signal SIGSEGV)."),
    ],
)
def test_functions_that_fail(mine: Path, name: str, message: str) -> None:
    with RewardProcess(["mine:length", f"mine:{name}"]) as process:
        for _ in range(2):  # the second time with a new child, where the first one died
            with pytest.raises(RewardError) as caught:
                process.judge(batch("a", "b"))
            assert caught.value.message.startswith(f"The reward function 'mine:{name}' {message}")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["loops", "loops_in_c"])
def test_functions_that_hang(mine: Path, name: str) -> None:
    with RewardProcess([f"mine:{name}", "mine:process"], timeout=0.5) as process:
        with pytest.raises(RewardError, match=r"longer than 0\.5 s for 1 completion") as caught:
            process.judge(batch("a"))
        assert "--reward-timeout" in caught.value.hint


def test_names_are_checked_at_once() -> None:
    check_rewards(["math", "trl.rewards:accuracy_reward", "regex:a:b"], [1.0, 0.5, 0])
    for names, message in ((["math", "a.b:"], "--reward is 'a.b:'."), (["a b:c"], "'a b:c'."),
                           ([], "There is no reward.")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            check_rewards(names)
        with pytest.raises(UsageError, match=message):
            RewardProcess(names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent:f", "'absent' cannot be imported: No module named 'absent'"),
        ("broken:f", "'broken' cannot be imported: No module named 'no_such_module_at_all'"),
        ("leaving:f", "'leaving' cannot be imported: SystemExit: 3"),
        ("mine:absent", "'mine' has no 'absent'."),
        ("mine:NOT_A_FUNCTION", "which is not a function but of type int."),
    ],
)
def test_functions_that_are_not_there(mine: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        RewardProcess(["math", name]).__enter__()
    assert caught.value.message.endswith(message)


def test_modules_on_the_path_of_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere.py").write_text("def f(completions, **_): return [5] * len(completions)")
    monkeypatch.syspath_prepend(tmp_path)
    assert judge("elsewhere:f", batch("a")) == [5.0]


def test_errors_of_the_data_arrive() -> None:
    with RewardProcess(["numeric"]) as process:
        with pytest.raises(DataError, match="the data have: reply") as caught:
            process.judge(batch("6", reply=["6"]))
        assert "--column answer=NAME" in caught.value.hint
        assert process.judge(batch("6", answer=["6"])) == [1.0]
        assert process.judge(batch()) == []


def test_several_rewards_add_up_as_in_trl(mine: Path) -> None:
    def thirds(completions: list[str], **_: Any) -> list[float]:
        return [len(text) / 3 for text in completions]

    weights = [1.0, 0.5, -2.0, 3.0]
    names = ["mine:length", "mine:some", "mine:none"]
    with RewardProcess([*names, thirds], weights=weights) as process:
        rewards = process.judge(batch("a", "b", "ccc", level=[1, 2, 3]))
    nan = torch.nan
    table = torch.tensor([[1, 2, nan, 1 / 3], [1, nan, nan, 1 / 3], [3, 6, nan, 1]])
    assert rewards == pytest.approx((table * torch.tensor(weights)).nansum(dim=1).tolist())


def test_kinds_of_numbers() -> None:
    kinds: list[Callable[[int], Any]] = [
        lambda n: [True] * n,
        lambda n: np.ones(n, dtype=np.float32),
        torch.ones,
        lambda n: [torch.tensor(1.0)] * n,
        lambda n: (np.float64(1) for _ in range(n)),
    ]
    for give in kinds:

        def ones(completions: list[str], give: Any = give, **_: Any) -> Any:
            return give(len(completions))

        assert judge(ones, batch("a", "b")) == [1.0, 1.0]


def test_functions_in_this_process() -> None:
    async def later(completions: list[str], **_: Any) -> list[float]:
        return [2.0] * len(completions)

    def hangs(**_: Any) -> list[float]:
        time.sleep(3)
        return []

    def fails(**_: Any) -> list[float]:
        raise KeyError("x")

    before = len(psutil.Process().children())
    with RewardProcess([later]) as process:
        assert len(psutil.Process().children()) == before
        assert process.judge(batch("a")) == [2.0]
    with pytest.raises(RewardError, match=r"'hangs' took longer than 0\.2 s"):
        judge(hangs, batch("a"), timeout=0.2)
    with pytest.raises(RewardError, match="'fails' raised KeyError: 'x'"):
        judge(fails, batch("a"))


def test_verifiers_that_hang_are_worth_nothing() -> None:
    with RewardProcess([r"regex:^(a+)+$", "exact"], timeout=0.6) as process:
        given = batch("aaa", "a" * 60 + "b", "b", answer=["b"] * 3)
        assert (process.judge(given), process.hung) == ([1.0, 0.0, 1.0], 1)
        assert (process.judge(batch("a", answer=["b"])), process.hung) == ([1.0], 1)
    # Towers of powers do not stop a batch.
    texts = ["Answer: 9^9^9^9", r"\boxed{9^{9^{9^9}}}", "#### 6", "Answer: 9**9**9**9"]
    given = batch(*texts, answer=["6"] * 4)
    assert judge("math", given, timeout=15) == [0.0, 0.0, 1.0, 0.0]


def test_large_requests_and_answers(mine: Path) -> None:
    with RewardProcess(["mine:length"]) as process:
        assert process.judge(batch("a" * 5_000_000, "b")) == [5_000_000.0, 1.0]
        assert process.judge(batch(*["a"] * 400_000)) == [1.0] * 400_000


ANSWERS = [
    (r"\boxed{\frac{1}{3}}", r"\frac{1}{3}"), (r"\boxed{\frac{2}{6}}", r"\frac{1}{3}"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{3}"), (r"So $\boxed{42}$.", "42"),
    (r"So $\boxed{41}$.", "42"), (r"\boxed{x^2 + 2x + 1}", "$(x+1)^2$"),
    (r"\boxed{2\sqrt{2}}", r"$\sqrt{8}$"), (r"\boxed{(1, 2)}", "$(1,2)$"),
    (r"\boxed{1,234}", "1234"), (r"\boxed{5}", "Wednesday"), ("no box", "42"),
]  # fmt: skip


def test_math_agrees_with_trl() -> None:
    talks = [[{"role": "assistant", "content": text}] for text, _ in ANSWERS]
    given = Completions(
        prompts=[[{"role": "user", "content": "?"}]] * len(talks),
        completions=talks,
        completion_ids=[[1]] * len(talks),
        columns={"solution": [gold for _, gold in ANSWERS]},
    )
    theirs = judge("trl.rewards:accuracy_reward", given, timeout=60)
    assert theirs == verify_all("math", given.prompts, given.completions, given.columns)
    assert {*theirs} == {1.0, 0.0, None}


def test_the_child_ends_with_the_block_and_with_ctrl_c(mine: Path) -> None:
    with RewardProcess(["mine:process"]) as process:
        [pid] = process.judge(batch("a"))
        assert pid != os.getpid()
        assert psutil.pid_exists(int(pid or 0))
    assert not psutil.pid_exists(int(pid or 0))
    before = set(psutil.Process().children())

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        with RewardProcess(["mine:loops"]) as process:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                process.judge(batch("a"))
            assert set(psutil.Process().children()) == before
    finally:
        signal.signal(signal.SIGALRM, old)


ORPHAN = """
from hlscore.rollouts.reward_worker import Completions
from hlscore.rollouts.rewards import RewardProcess
import sys
with RewardProcess(["mine:loops_in_c"], timeout=float(sys.argv[1])) as process:
    print(process._worker.process.pid, flush=True)
    process.judge(Completions(prompts=["p"], completions=["c"], completion_ids=[[1]], columns={}))
"""


def test_an_orphan_that_hangs_goes_away(mine: Path) -> None:
    command = [sys.executable, "-c", ORPHAN, "1.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.4)
        parent.kill()
        parent.wait()
    assert child.is_running()
    deadline = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_verifiers_cannot_take_all_memory() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), limited_memory():
        bytearray(6 * 2**30)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
