"""How long do probing and scoring take with 1 and 2 threads, on quiet and on busy cores?

Run it with `python benchmarks/threads.py /path/to/model`. Every setting is a process of its own,
bound to 2 cores, with `OMP_NUM_THREADS` as the number of threads. Busy: 4 other processes compute
on the same 2 cores all the time. What the CPU gives each of them during a step is the fair share of
a thread, whatever else runs on the machine: the fair time of a step is the CPU time that it takes
one thread without them, over that share and the number of threads.
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
from typing import Any

CORES = 2
BUSY = "x = 1\nwhile True: x = (x * 1103515245 + 12345) % 2147483648"


class Clock:
    """Wall and CPU time of each step of a run, and the mean CPU time of other processes."""

    def __init__(self, others: list[int]) -> None:
        self.steps: dict[str, list[float]] = {}
        self._others = others
        self._began: tuple[str, list[float]] | None = None

    def start(self, what: str, *_: object) -> None:
        """Begin a step, and end the one before."""
        self.stop()
        self._began = what, self._times()

    def advance(self, amount: int) -> None:
        """Ignore the units."""

    def stop(self) -> None:
        """End the step that runs."""
        if self._began is not None:
            what, before = self._began
            now = self._times()
            self.steps[what] = [late - early for late, early in zip(now, before, strict=True)]

    def _times(self) -> list[float]:
        theirs = [cpu_seconds(other) for other in self._others]
        mean = sum(theirs) / max(1, len(theirs))
        return [time.perf_counter(), time.process_time(), mean]


def cpu_seconds(process: int) -> float:
    """CPU time that another process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_once(model: str, samples: int, estimator: str, others: list[int]) -> None:
    """Score a model in this process and print the times of its steps as JSON."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does

    from transformers import AutoModelForCausalLM, AutoTokenizer

    import hlscore

    clock = Clock(others)
    hlscore.rank(
        AutoModelForCausalLM.from_pretrained(model, dtype="bfloat16"),
        AutoTokenizer.from_pretrained(model),
        samples=samples, estimator=estimator, movement="gradient", progress=clock,
    )  # fmt: skip
    clock.stop()
    print(json.dumps(clock.steps))


@contextmanager
def competing(count: int) -> Iterator[list[int]]:
    """Other programs that compute all the time."""
    busy = [sys.executable, "-c", BUSY]
    others = [subprocess.Popen(busy) for _ in range(count)]  # noqa: S603 - our own program
    try:
        yield [other.pid for other in others]
    finally:
        for other in others:
            other.kill()
            other.wait()


def running_outside() -> float:
    """Threads of other programs that want a core, mean of five seconds."""
    counts = []
    for _ in range(50):
        running = Path("/proc/loadavg").read_text().split()[3].partition("/")[0]
        counts.append(int(running) - 1)  # this one
        time.sleep(0.1)
    return round(sum(counts) / len(counts), 1)


def measure(options: argparse.Namespace, threads: int, others: int) -> dict[str, object]:
    """Run one setting in a process of its own."""
    outside = running_outside()
    with competing(others) as processes:
        ended = subprocess.run(  # noqa: S603 - our own program
            [
                sys.executable, __file__, options.model, "--once",
                "--samples", str(options.samples), "--estimator", options.estimator,
                "--others", *map(str, processes),
            ],
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    steps: dict[str, list[float]] = json.loads(ended.stdout.splitlines()[-1])
    found = {
        step: {
            "wall_seconds": round(wall, 2),
            "cpu_seconds": round(cpu, 2),
            "seconds_of_each_competitor": round(theirs, 2),
        }
        for step, (wall, cpu, theirs) in steps.items()
    }
    return {"threads": threads, "competing": others, "running_outside": outside} | found


def main() -> None:
    """Measure every setting, print a table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--estimator", default="exact")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--others", type=int, nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        run_once(options.model, options.samples, options.estimator, options.others)
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    runs: list[Any] = []
    for others in (0, 4):
        for threads in (1, 2):
            run = measure(options, threads, others)
            alone = runs[0] if runs else run
            for step in ("probing", "scoring") if others else ():
                times: Any = run[step]
                wall = times["wall_seconds"]
                share = times["seconds_of_each_competitor"] / wall
                fair = alone[step]["cpu_seconds"] / (threads * share)
                times |= {
                    "fair_share_seconds": round(fair, 2),
                    "wall_over_fair_share": round(wall / fair, 2),
                }
            runs.append(run)
            print(json.dumps(run))
    from machine import write_result

    settings = {"samples": options.samples, "estimator": options.estimator, "dtype": "bfloat16"}
    model = Path(options.model).name
    print(write_result("threads", {"model": model, "settings": settings, "runs": runs}))


if __name__ == "__main__":
    main()
