"""How many CPU threads a run uses, and work that is spread over them.

Threads that share one matrix operation wait for each other many times in each decomposition.
Where another program holds one of the cores, or a control group limits the CPU time, they spend
most of their time waiting. Modules are therefore spread over threads, and one thread decomposes a
module alone: no thread waits, and results do not depend on how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TypeVar

from hlscore.control_groups import control_groups

Result = TypeVar("Result")


def cpu_limit() -> int:
    """CPUs that this process may use: its affinity and the quotas of its control groups.

    They are whole, at least 1; a quota of 2.5 gives 2.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = [float(usable or 1)]
    for version, folder in control_groups("cpu"):
        with suppress(OSError, ValueError):  # no such group, or `max`
            if version == 1:
                limit = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            else:
                limit, period = (folder / "cpu.max").read_text().split()
            if float(limit) > 0 and float(period) > 0:
                limits.append(float(limit) / float(period))
    return max(1, int(min(limits)))


def thread_limit() -> int:
    """Threads of torch, such as `OMP_NUM_THREADS` sets them, but no more than `cpu_limit`."""
    import torch

    return min(torch.get_num_threads(), cpu_limit())


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use this many threads for one operation, for the length of a `with` block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def workers(
    count: int, done: Callable[[Result], None]
) -> Iterator[Callable[[Callable[[], Result]], None]]:
    """Threads that each run one job at a time, with one thread of torch.

    Args:
        count: Number of threads; 0 runs each job in the calling thread and changes nothing, for
            work on an accelerator.
        done: Called in the calling thread with what each job returned.

    Yields:
        A function that runs a job; it waits while every thread is busy, so that few inputs are
        held at a time.
    """
    if not count:
        yield lambda job: done(job())
        return
    import torch

    before, running = torch.get_num_threads(), set[Future[Result]]()

    def collect(most: int) -> None:
        while len(running) > most:
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            running.difference_update(ended)
            for future in ended:
                done(future.result())

    def submit(job: Callable[[], Result]) -> None:
        collect(count - 1)
        running.add(pool.submit(job))

    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield submit
        collect(0)
    finally:
        pool.shutdown(cancel_futures=True)
        # What a thread of the pool sets also holds for threads that start later.
        torch.set_num_threads(before)
