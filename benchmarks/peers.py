"""How long does hlscore take beside other ways of scoring the same modules on the same batches?

Run it with `python benchmarks/peers.py --model qwen3-41m --examples 64 --length 64`.
All ways run in one process, one after the other, in every repetition in another order, each on a
fresh copy of the model; copying is not timed. The clock starts with model and batches in memory
and stops when all scores are known. Before that, the ways that compute gradients are compared on
a small model with a calculation in float64.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import statistics
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from machine import parsed, print_table, write_result
from models import MODELS, build, random_probes, structured_probes
from peer_ways import FLOOR, REFERENCE, WAYS, Job, Outcome, Way, make_job
from rich.progress import Progress

from hlscore.probes.units import ProbeExample

# --- running ----------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Record:
    """Runs of one way."""

    seconds: list[float] = field(default_factory=list)  # time of each run
    outcome: Outcome = field(default_factory=lambda: Outcome(scores={}))  # what the last run found
    # Largest memory on the GPU in a run, its copy of the model included; 0 on a CPU.
    peak_bytes: int = 0
    failure: str = ""  # why it could not run

    @property
    def median(self) -> float | None:
        """Median time; `None` when it could not run."""
        return statistics.median(self.seconds) if self.seconds and not self.failure else None


def _fresh(job: Job) -> Job:
    return replace(job, model=copy.deepcopy(job.model))


def _run_once(way: Way, job: Job, record: Record) -> None:
    """Time one run on a fresh copy; a failure ends up in the record."""
    on_gpu = job.model.device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else 0
    own = _fresh(job)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            began = time.perf_counter()
            outcome = way.run(own)
            if on_gpu:
                torch.cuda.synchronize()
        record.seconds.append(time.perf_counter() - began)
        record.outcome = outcome
    except Exception as error:
        reason = str(error).strip().splitlines()[:1]
        record.failure = ": ".join([type(error).__name__, *reason])
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() - before
        record.peak_bytes = max(record.peak_bytes, peak)
    del own
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()


def compare(job: Job, ways: list[Way], repeats: int) -> dict[str, Record]:
    """Run every way, interleaved, each repetition starting with another one."""
    records = {way.name: Record() for way in ways}
    _run_once(WAYS["Spectrum"], job, Record())  # Untimed: wakes up the libraries.
    _run_once(WAYS[FLOOR], job, Record())
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=repeats * len(ways))
        for repeat in range(repeats):
            start = repeat * len(ways) // repeats
            for way in (*ways[start:], *ways[:start]):
                progress.update(task, description=f"{way.name}, {repeat + 1} of {repeats}")
                if not records[way.name].failure:
                    _run_once(way, job, records[way.name])
                progress.advance(task)
    return records


# --- is the work really done? -----------------------------------------------------------------


def float64_gradients(job: Job, examples: list[ProbeExample]) -> dict[str, np.ndarray]:
    """Mean gradients in float64, example by example, without padding and without hlscore's loss."""
    model = copy.deepcopy(job.model).double()
    tokens = sum(item.counted_tokens for item in examples)
    weights = [model.get_parameter(item.parameter) for item in job.modules]
    sums = [np.zeros(weight.shape) for weight in weights]
    for item in examples:
        ids = torch.tensor(item.input_ids)
        chances = model(ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        loss = -chances.gather(1, ids[1:, None])[torch.tensor(item.counted[1:])].sum()
        parts = torch.autograd.grad(loss, weights)
        sums = [total + part.numpy() / tokens for total, part in zip(sums, parts, strict=True)]
    return {item.module: total for item, total in zip(job.modules, sums, strict=True)}


def _outside(own: np.ndarray, other: np.ndarray, rank: int) -> float:
    left, values, right = np.linalg.svd(own, full_matrices=False)
    return float(np.sum(((left[:, rank:] * values[rank:]) @ right[rank:]) * other))


def check_gradients(rank: int = 4) -> dict[str, float]:
    """Compare the ways that compute gradients with float64 on a small model.

    Returns:
        Largest error over the modules, by way, relative to the energy that is scored; ways whose
        package is missing are left out.

    Raises:
        RuntimeError: One is off by more than float32 explains.
    """
    model = build("qwen3-tiny")
    probes = structured_probes(model, examples=12, length=(8, 24), groups=3)
    job = make_job(model, probes, rank=rank, batch_size=2)
    sides = [[item for group in half for item in group] for half in probes.halves]
    mean = float64_gradients(job, sides[0] + sides[1])
    first, second = (float64_gradients(job, side) for side in sides)
    energies = {n: np.linalg.svd(g, compute_uv=False) ** 2 for n, g in mean.items()}
    tails = {name: float(values[rank:].sum()) for name, values in energies.items()}
    totals = {name: float(values.sum()) for name, values in energies.items()}
    crossed = {
        n: (_outside(a, second[n], rank) + _outside(second[n], a, rank)) / 2
        for n, a in first.items()
    }
    errors = {}
    # (what it should give, what its error is compared with)
    cases = {
        "hlscore exact": (crossed, tails),
        "gradient SVD": (tails, tails),
        "half SVD": (crossed, tails),
        "LoRA-GA": (totals, totals),
    }
    for name, (truth, scale) in cases.items():
        record = Record()
        _run_once(WAYS[name], job, record)
        if record.failure.startswith("ModuleNotFoundError"):
            continue
        found = record.outcome.scores
        if record.failure or found.keys() != truth.keys():
            raise RuntimeError(f"{name} fails on the small model: {record.failure or found.keys()}")
        errors[name] = max(abs(found[key] - truth[key]) / scale[key] for key in truth)
        if not errors[name] < 1e-3:
            raise RuntimeError(f"{name} is off by {errors[name]:.1e} on the small model")
    _run_once(WAYS[REFERENCE], job, Record())  # Not compared: wakes it up, like those above.
    return errors


# --- telling ----------------------------------------------------------------------------------


def _row(way: Way, record: Record, job: Job, medians: Mapping[str, float | None]) -> dict[str, Any]:
    """What the result file says of one way."""
    times: dict[str, float | None] = {}
    for name in (REFERENCE, FLOOR):
        base = medians.get(name)
        known = record.median is not None and base
        times[name] = round(record.median / base, 3) if known else None
    covered = [item for item in job.modules if item.module in record.outcome.scores]
    params = sum(item.n_params for item in covered) / sum(item.n_params for item in job.modules)
    return {
        "name": way.name,
        "what": way.what,
        "computes_gradients": way.gradients,
        "seconds": [round(second, 4) for second in record.seconds],
        "median_seconds": round(record.median, 4) if record.median is not None else None,
        "times_hlscore_sketch": times[REFERENCE],
        "times_plain_pass": times[FLOOR],
        "weights_scored": len(covered),
        "share_of_candidate_parameters": round(params, 4),
        "peak_gpu_bytes": record.peak_bytes or None,
        "complete": record.outcome.complete,
        "details": dict(record.outcome.details),
        "note": record.outcome.note,
        "failure": record.failure,
    }


def show(rows: list[dict[str, Any]], candidates: int) -> None:
    """Print the comparison, and below it what there is to say of single ways."""
    cells = []
    for row in rows:
        median = row["median_seconds"]
        ratios = (row["times_hlscore_sketch"], row["times_plain_pass"])
        cells.append((
            row["name"], row["what"], "yes" if row["computes_gradients"] else "no",
            f"{row['weights_scored']} of {candidates}",
            "failed" if median is None else f"{'' if row['complete'] else '> '}{median:.2f}",
            *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        ))  # fmt: skip
    print_table(("way", "gives", "gradients", "scored", "seconds", "x hlscore", "x plain"), cells)
    print(f"x hlscore: time over that of {REFERENCE}; x plain: over that of {FLOOR}.")
    for row in rows:
        if row["failure"] or row["note"]:
            print(f"{row['name']}: {row['failure'] or row['note']}")


def main() -> None:
    """Run, print a table, write a dated JSON."""
    options = parsed(
        __doc__, model={"default": "qwen3-41m", "choices": list(MODELS)},
        ways={"nargs": "+", "default": list(WAYS), "choices": list(WAYS), "metavar": "WAY"},
        tokens={"default": "structured", "choices": ["structured", "random"]}, examples=64,
        length={"type": int, "nargs": "+", "default": [64],
                "help": "one length, or smallest and largest"},
        batch_size=4, groups={"type": int, "default": 8, "help": "probe groups per half"}, rank=16,
        eva_rounds={"type": int, "default": 3, "help": "rounds over the batches"}, repeats=2,
        threads=1, device="cpu", dtype={"default": "float32", "choices": ["float32", "bfloat16"]},
        seed=0,
    )  # fmt: skip
    if len(options.length) > 2:
        raise SystemExit("--length takes one or two numbers")
    checked = check_gradients()
    dtype = getattr(torch, options.dtype)
    model = build(options.model, dtype=dtype, device=options.device, seed=options.seed)
    make = structured_probes if options.tokens == "structured" else random_probes
    low, high = options.length[0], options.length[-1]
    probes = make(
        model, examples=options.examples, length=(low, high), groups=options.groups,
        seed=options.seed,
    )  # fmt: skip
    job = make_job(
        model, probes, rank=options.rank, batch_size=options.batch_size, rounds=options.eva_rounds
    )
    ways = [WAYS[name] for name in options.ways]
    records = compare(job, ways, options.repeats)
    medians = {name: record.median for name, record in records.items()}
    rows = [_row(way, records[way.name], job, medians) for way in ways]
    show(rows, len(job.modules))
    packages = {}
    for name in ("peft", "accelerate"):
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    content = {
        "packages": packages,
        "settings": vars(options),
        "probes": {
            "source": probes.summary.source,
            "batches": len(job.batches),
            "counted_tokens": probes.summary.counted_tokens,
            "total_tokens": probes.summary.total_tokens,
        },
        "candidates": len(job.modules),
        "largest_relative_error_against_float64": checked,
        "results": rows,
    }
    print(write_result(f"peers_{options.model}", content))


if __name__ == "__main__":
    main()
