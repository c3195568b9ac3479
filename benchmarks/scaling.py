"""How does the cost of the sketch estimator grow with tokens, layers, width, rank and processes?

Run it with `python benchmarks/scaling.py`. One factor at a time is varied around a small Qwen3
model with random weights; all points run in turn in every repetition. Capture is the time of the
passes over the probes, scoring that of the decompositions and standard errors after them; memory
is the peak of all tensors together beside the weights. Processes are started with
`torch.distributed.run`, one thread each, and share the probes of one run.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from machine import cpu_peak_bytes, parsed, print_table, write_result
from models import VOCABULARY, StepClock, build, qwen3, random_probes, score, settings_for
from rich.progress import track
from transformers import PreTrainedModel

from hlscore.probes.units import ProbeSet
from hlscore.processes import Processes, joined
from hlscore.settings.capture import default_sketch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run whose cost is measured."""

    examples: int = 64  # probe examples
    length: int = 64  # tokens of each
    layers: int = 4  # decoder blocks
    width: int = 512  # hidden size; the feed-forward layers are 2.875 times as wide
    rank: int = 16  # LoRA rank, which the sketch grows with
    batch_size: int = 4  # examples per batch; no probe group of any point has fewer

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return self.examples * self.length


BASE = Point()
FACTORS: dict[str, tuple[Point, ...]] = {
    "tokens": tuple(replace(BASE, examples=examples) for examples in (64, 128, 192)),
    "layers": tuple(replace(BASE, layers=layers) for layers in (2, 4, 8)),
    # Below 512 a sketch of 128 columns would save too little: matrices are kept whole.
    "width": tuple(replace(BASE, width=width) for width in (512, 768, 1024)),
    "rank": tuple(replace(BASE, rank=rank) for rank in (4, 16, 32, 64)),
}
# Twice the examples, so that the batches of two processes are as large as those of one.
SHARED = replace(BASE, examples=128)
PROCESSES = (1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one run took."""

    capture_seconds: float  # passes over the probes
    scoring_seconds: float  # everything after them


# --- one run ----------------------------------------------------------------------------------


def build_point(point: Point) -> tuple[PreTrainedModel, ProbeSet]:
    """The model of a point, with seeded random weights, and its probes."""
    model = build(
        qwen3(
            hidden=point.width, intermediate=point.width * 23 // 8, layers=point.layers,
            heads=point.width // 64, kv_heads=point.width // 128,
        )
    )  # fmt: skip
    return model, random_probes(model, examples=point.examples, length=point.length)


def run(
    model: PreTrainedModel,
    probes: ProbeSet,
    point: Point,
    processes: Processes = Processes(),
) -> Cost | None:
    """Score every module with the sketch estimator.

    Returns:
        The cost; `None` in all but the main process.
    """
    settings = settings_for(
        "random Qwen3", point.rank, batch_size=point.batch_size, estimator="sketch"
    )
    clock = StepClock()
    found = score(model, probes, settings, clock, processes=processes)
    ended = time.perf_counter()
    if found is None:
        return None
    return Cost(
        capture_seconds=clock.begun["scoring"] - clock.begun["probing"],
        scoring_seconds=ended - clock.begun["scoring"],
    )


def peak_bytes(point: Point) -> int:
    """Largest sum of tensor memory that a run allocates beside the weights."""
    model, probes = build_point(point)
    return cpu_peak_bytes(lambda: run(model, probes, point))


# --- several processes ------------------------------------------------------------------------


def work(repeats: int) -> None:
    """Be one of several processes: run, and print the costs as JSON in the main one."""
    torch.set_num_threads(1)
    model, probes = build_point(SHARED)
    costs = []
    with joined() as processes:
        for _ in range(repeats + 1):
            processes.wait()
            costs.append(run(model, probes, SHARED, processes))
    if processes.is_main:
        print(json.dumps([asdict(cost) for cost in costs[1:] if cost is not None]))


def start_processes(count: int, repeats: int) -> list[Cost]:
    """Run a point in several processes."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(count), __file__, "--worker", "--repeats", str(repeats)),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    lines = [line for line in ended.stdout.splitlines() if line.startswith("[{")]
    if ended.returncode or not lines:
        raise RuntimeError(f"{count} processes failed: {ended.stderr[-2000:]}")
    return [Cost(**item) for item in json.loads(lines[-1])]


# --- all points -------------------------------------------------------------------------------


def measure(repeats: int) -> dict[Point, list[Cost]]:
    """Run every point in turn, in every repetition, after one round to warm up."""
    points = list(dict.fromkeys(point for group in FACTORS.values() for point in group))
    costs: dict[Point, list[Cost]] = {point: [] for point in points}
    run(*build_point(BASE), BASE)
    jobs = [point for _ in range(repeats) for point in points]
    for point in track(jobs, description="points", transient=True):
        gc.collect()
        cost = run(*build_point(point), point)
        assert cost is not None
        costs[point].append(cost)
    return costs


def row(factor: str, value: int, costs: Sequence[Cost], peak: int | None) -> dict[str, Any]:
    """What the result file says of one point."""
    capture = [cost.capture_seconds for cost in costs]
    scoring = [cost.scoring_seconds for cost in costs]
    return {
        "factor": factor,
        "value": value,
        "capture_seconds": round(statistics.median(capture), 3),
        "capture_range": [round(min(capture), 3), round(max(capture), 3)],
        "scoring_seconds": round(statistics.median(scoring), 3),
        "scoring_range": [round(min(scoring), 3), round(max(scoring), 3)],
        "peak_bytes": peak,
    }


def main() -> None:
    """Run, print a table, write a dated JSON."""
    options = parsed(
        __doc__,
        repeats=2,
        threads={"type": int, "default": 2, "help": "of a process that is alone"},
        worker={"action": "store_true", "help": "be one of several processes"},
    )
    if options.worker:
        work(options.repeats)
        return
    began = time.perf_counter()
    costs = measure(options.repeats)
    peaks = {
        point: peak_bytes(point) for point in track(costs, description="memory", transient=True)
    }
    results = [
        row(factor, getattr(point, factor), costs[point], peaks[point])
        for factor, points in FACTORS.items()
        for point in points
    ]
    results += [
        row("processes", count, start_processes(count, options.repeats), None)
        for count in track(PROCESSES, description="processes", transient=True)
    ]
    print_table(
        ("factor", "value", "capture, s", "scoring, s", "peak MiB"),
        [
            (item["factor"], item["value"], f"{item['capture_seconds']:.2f}",
             f"{item['scoring_seconds']:.2f}",
             "" if item["peak_bytes"] is None else f"{item['peak_bytes'] / 2**20:.0f}")
            for item in results
        ],
    )  # fmt: skip
    content = {
        "wall_seconds": round(time.perf_counter() - began, 1),
        "settings": {
            "repeats": options.repeats,
            "threads": options.threads,
            "base": asdict(BASE),
            "processes": {"point": asdict(SHARED), "threads_each": 1},
            "sketch_sizes": {point.rank: default_sketch_size(point.rank) for point in costs},
            "vocabulary": VOCABULARY,
        },
        "results": results,
    }
    print(write_result("scaling", content))


if __name__ == "__main__":
    main()
