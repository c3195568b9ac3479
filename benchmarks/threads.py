"""How long do probing and scoring take with 1 and 2 threads, on quiet and on busy cores?

Run it with `python benchmarks/threads.py /path/to/model`. Every setting is a process of its own,
bound to 2 cores, with `OMP_NUM_THREADS` as the number of threads. Busy: 4 other processes compute
on the same 2 cores all the time. Fair share is the wall time that the CPU time of one quiet thread
would take if the cores were divided evenly among all threads that want them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CORES = 2
BUSY = "x = 1\nwhile True: x = (x * 1103515245 + 12345) % 2147483648"


class Clock:
    """Wall and CPU time of each step of a run."""

    def __init__(self) -> None:
        self.steps: dict[str, list[float]] = {}
        self._began: tuple[str, float, float] | None = None

    def start(self, what: str, *_: object) -> None:
        """Begin a step, and end the one before."""
        self.stop()
        self._began = what, time.perf_counter(), time.process_time()

    def advance(self, amount: int) -> None:
        """Ignore the units."""

    def stop(self) -> None:
        """End the step that runs."""
        if self._began is not None:
            what, wall, cpu = self._began
            self.steps[what] = [time.perf_counter() - wall, time.process_time() - cpu]


def run_once(model: str, samples: int, estimator: str) -> None:
    """Score a model in this process and print the times of its steps as JSON."""
    from hlscore.threads import let_waiting_threads_sleep

    let_waiting_threads_sleep()  # as the command does

    from transformers import AutoModelForCausalLM, AutoTokenizer

    import hlscore

    clock = Clock()
    hlscore.rank(
        AutoModelForCausalLM.from_pretrained(model, dtype="bfloat16"),
        AutoTokenizer.from_pretrained(model),
        samples=samples, estimator=estimator, progress=clock,
    )  # fmt: skip
    clock.stop()
    print(json.dumps(clock.steps))


@contextmanager
def competing(count: int) -> Iterator[None]:
    """Other programs that compute all the time."""
    busy = [sys.executable, "-c", BUSY]
    others = [subprocess.Popen(busy) for _ in range(count)]  # noqa: S603 - our own program
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(options: argparse.Namespace, threads: int, others: int) -> dict[str, object]:
    """Run one setting in a process of its own."""
    load = os.getloadavg()[0]
    with competing(others):
        ended = subprocess.run(  # noqa: S603 - our own program
            [
                sys.executable, __file__, options.model, "--once",
                "--samples", str(options.samples), "--estimator", options.estimator,
            ],
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    steps: dict[str, list[float]] = json.loads(ended.stdout.splitlines()[-1])
    found = {
        step: {"wall_seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}
        for step, (wall, cpu) in steps.items()
    }
    return {"threads": threads, "competing": others, "load_before": round(load, 2)} | found


def main() -> None:
    """Measure every setting, print a table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--estimator", default="exact")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        run_once(options.model, options.samples, options.estimator)
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    runs = []
    for others in (0, 4):
        for threads in (1, 2):
            run = measure(options, threads, others)
            share = min(1.0, CORES / (threads + others))
            alone = runs[0] if runs else run
            for step in ("probing", "scoring"):
                fair = alone[step]["cpu_seconds"] / (threads * share)  # type: ignore[index]
                ratio = run[step]["wall_seconds"] / fair  # type: ignore[index]
                run[step]["fair_share_seconds"] = round(fair, 2)  # type: ignore[index]
                run[step]["wall_over_fair_share"] = round(ratio, 2)  # type: ignore[index]
            runs.append(run)
            print(json.dumps(run))
    from machine import write_result

    settings = {"samples": options.samples, "estimator": options.estimator, "dtype": "bfloat16"}
    model = Path(options.model).name
    print(write_result("threads", {"model": model, "settings": settings, "runs": runs}))


if __name__ == "__main__":
    main()
