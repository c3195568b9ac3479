"""How long do `plan` and `export` take, and how far from the best is what the solver finds?

Whole commands, Python's start included, on made-up reports with the shapes of real models: 252
modules (36 blocks as in Qwen3-8B) and 10,000. Every command runs several times; the table has the
fastest, the median and the gap that the plan states. A second table solves small instances and
tries every choice for comparison.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import parsed, write_result

from hlscore.artifacts.report import write_report
from hlscore.planning.knapsack import Menu, choose_options
from hlscore.records import (
    Fingerprint,
    ModelDimensions,
    ModelIdentity,
    ModuleRow,
    ProbeSummary,
    RunInfo,
    ScoreReport,
)

SHAPES = {
    "q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": (4096, 4096),
    "gate_proj": (12288, 4096), "up_proj": (12288, 4096), "down_proj": (4096, 12288),
}  # fmt: skip
CURVE = (0, 1, 2, 4, 8, 16, 32, 64)
CASES = {
    "0.1": ("--budget", "0.1"),
    "0.1p": ("--budget", "0.1p"),
    "0.1p, ranks": ("--budget", "0.1p", "--ranks", "4,8,16,32,64"),
    "0.1, ranks": ("--budget", "0.1", "--ranks", "4,8,16,32,64"),
    "memory, ranks": ("--budget", "MEMORY", "--ranks", "4,8,16,32,64", "--base", "4"),
}


def made_up_report(modules: int, seed: int) -> ScoreReport:
    """Energies drawn lognormally, spectra that fall as power laws."""
    draw = np.random.default_rng(seed)
    rows = tuple(_row(place, draw) for place in range(modules))
    params = sum(row.n_params for row in rows)
    return ScoreReport(
        rows=rows,
        model=ModelIdentity(
            model="made-up", revision=None, architecture="Qwen3ForCausalLM", model_type="qwen3",
            n_params=params + 1_244_659_712,
            dimensions=ModelDimensions(
                hidden_size=4096, blocks=modules // 7, vocab_size=151_936, packable_params=params,
                packable_rows=sum(row.out_features for row in rows), block_widths=90_112,
            ),
            fingerprint=Fingerprint(structure="sha256:0", weights="sha256:0"),
        ),
        probes=ProbeSummary(
            source="made up", format="text", hash="sha256:0", examples=1, groups=16,
            counted_tokens=1, total_tokens=1, truncated=0, dropped=0,
        ),
        run=RunInfo(
            hlscore_version="0", settings={}, seed=seed, score="hls", rank=16,
            estimator="sketch", device="none", dtype="bfloat16", sketch_size=64,
        ),
    )  # fmt: skip


def _row(place: int, draw: np.random.Generator) -> ModuleRow:
    kind = list(SHAPES)[place % len(SHAPES)]
    block = "self_attn" if kind[0] in "qkvo" else "mlp"
    out, inputs = SHAPES[kind]
    energy, fall = float(draw.lognormal(0, 1.5)), draw.uniform(0.05, 0.4)
    curve = tuple(float(energy * (1 + rank) ** -fall) for rank in CURVE)
    at = CURVE.index(16)
    replicates = tuple(float(value) for value in draw.normal(curve[at], 0.2 * curve[at], 200))
    name = f"model.layers.{place // len(SHAPES)}.{block}.{kind}"
    return ModuleRow(
        rank=None, module=name, parameter=f"{name}.weight", layer=place // len(SHAPES), kind=kind,
        block=block, matrices=1, matrices_reached=1, out_features=out, in_features=inputs,
        n_params=out * inputs, form="linear", storage="out_in", hls=curve[at], tail=curve[at],
        grad_norm=energy, grad_energy=energy, curve_ranks=CURVE, tail_curve=curve,
        tail_curve_errors=(0.0,) * len(CURVE), hls_curve=curve,
        hls_curve_errors=(0.0,) * len(CURVE), hls_replicates=replicates,
        tail_replicates=replicates, grad_norm_replicates=replicates,
    )  # fmt: skip


def time_command(arguments: list[str], folder: Path, repeats: int) -> list[float]:
    """Wall seconds of a whole command, several times."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "hlscore", *arguments],
            check=True,
            capture_output=True,
            cwd=folder,
        )
        seconds.append(time.perf_counter() - began)
    return seconds


def measure(modules: int, repeats: int, folder: Path) -> list[dict[str, object]]:
    """Time every case on one report."""
    report = made_up_report(modules, seed=0)
    write_report(report, folder / "scores.parquet")
    memory = f"{0.6 + 3e-9 * report.model.n_params:.0f}GiB"
    found: list[dict[str, object]] = []
    for name, options in CASES.items():
        given = [memory if item == "MEMORY" else item for item in options]
        plan = ["plan", "scores.parquet", *given, "-o", "plan.json", "--force"]
        seconds = time_command(plan, folder, repeats)
        solver = json.loads((folder / "plan.json").read_text())["solver"]
        found.append({"modules": modules, "command": f"plan {name}", "seconds": seconds, **solver})
    for name in ("peft", "axolotl", "csv"):
        export = ["export", "plan.json", "--to", name, "-o", f"out-{name}", "--force"]
        seconds = time_command(export, folder, repeats)
        found.append({"modules": modules, "command": f"export {name}", "seconds": seconds})
    return found


def against_everything(instances: int) -> dict[str, float]:
    """Largest shortfall and bound error over small instances, every choice tried."""
    shortfall = excess = 0.0
    for seed in range(instances):
        draw = np.random.default_rng(seed)
        modules, options = 6, 5
        costs = np.c_[np.zeros(modules), np.sort(draw.integers(1, 60, (modules, options - 1)), 1)]
        values = np.c_[np.zeros(modules), draw.lognormal(0, 1, (modules, options - 1))]
        limit = float(draw.integers(20, 200))
        menu = Menu(
            modules=np.repeat(np.arange(modules), options),
            values=values.ravel(),
            costs=costs.reshape(1, -1),
            limits=np.array([limit]),
        )
        found = choose_options(menu)
        best = max(
            values[np.arange(modules), picked].sum()
            for picked in itertools.product(range(options), repeat=modules)
            if costs[np.arange(modules), picked].sum() <= limit
        )
        shortfall = max(shortfall, (best - found.value) / best)
        excess = max(excess, (found.bound - best) / best)
    return {"instances": instances, "largest_shortfall": shortfall, "largest_bound_excess": excess}


def main() -> None:
    """Measure, print a table, write the result file."""
    options = parsed(__doc__, repeats=7, instances=100)
    results: list[dict[str, object]] = []
    for modules in (252, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            results += measure(modules, options.repeats, Path(folder))
    print(f"{'modules':>8} {'command':24} {'fastest':>8} {'median':>8} {'gap':>9}")
    for item in results:
        seconds: list[float] = item["seconds"]  # type: ignore[assignment]
        gap = f"{item['gap']:.1e}" if "gap" in item else ""
        print(
            f"{item['modules']:>8} {item['command']:24} {min(seconds):8.2f} "
            f"{statistics.median(seconds):8.2f} {gap:>9}"
        )
    small = against_everything(options.instances)
    print(small)
    content = {"settings": vars(options), "results": results, "against_everything": small}
    print(write_result("planning", content))


if __name__ == "__main__":
    main()
