"""Are the standard errors right? Compare them with the spread over independent probe sets.

Run it with `python benchmarks/stderr.py --draws 24 --ranks 4 16`. It draws independent probe sets
of the same kind as the built-in one, ranks `builtin:tiny` on each, and compares for every module
the reported standard error with the standard deviation of `hls` over the draws, and how often the
95 % interval holds the mean over the draws. The model was trained on text of this kind, some of
which may come back as a probe.
"""

from __future__ import annotations

import time
from itertools import islice

import numpy as np
from builtin_corpus import training_stream
from machine import parsed, print_table, write_result
from rich.progress import track

import hlscore
from hlscore.inputs.model import load_model
from hlscore.settings import ModelSettings


def measure(draws: int, samples: int, rank: int) -> dict[str, object]:
    """Rank the built-in model on independent probe sets.

    Returns:
        Quantiles over modules of the ratio reported / observed, and the coverage.
    """
    loaded = load_model(ModelSettings(model="builtin:tiny", device="cpu"))
    stream = training_stream(20261123, frozenset())
    columns = ("hls", "hls_stderr", "hls_ci_low", "hls_ci_high")
    drawn = []
    for _ in track(range(draws), description=f"rank {rank}", transient=True):
        rows = [dict(row) for row in islice(stream, samples)]
        result = hlscore.rank(
            loaded.model, loaded.tokenizer, data=rows, samples=0, rank=rank,
            checkpointing=False, movement="gradient",
        )  # fmt: skip
        found = sorted(result.report.candidates, key=lambda row: row.module)
        drawn.append([[getattr(row, name) for row in found] for name in columns])
    hls, stderr, low, high = np.array(drawn, dtype=np.float64).swapaxes(0, 1)
    mean, spread = hls.mean(0), hls.std(0, ddof=1)
    ratios = np.median(stderr, axis=0) / spread
    covered = ((low <= mean) & (mean <= high)).mean()
    return {
        "rank": rank,
        "draws": draws,
        "samples": samples,
        "modules": len(mean),
        "ratio_quartiles": [round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.5, 0.75))],
        "ratio_range": [round(float(ratios.min()), 3), round(float(ratios.max()), 3)],
        "coverage_of_95_percent_interval": round(float(covered), 3),
        "median_spread_over_mean": round(float(np.median(spread / np.abs(mean))), 3),
    }


def main() -> None:
    """Run, print a table, write a dated JSON."""
    ranks = {"type": int, "nargs": "+", "default": [4, 16]}
    options = parsed(__doc__, draws=24, samples=256, ranks=ranks)
    began = time.perf_counter()
    results = [measure(options.draws, options.samples, rank) for rank in options.ranks]
    shown = ("rank", "ratio_quartiles", "ratio_range", "coverage_of_95_percent_interval")
    print_table(
        ("LoRA rank", "reported / observed (quartiles)", "range", "coverage of 95 %"),
        [[item[name] for name in shown] for item in results],
    )
    seconds = round(time.perf_counter() - began, 1)
    print(write_result("stderr", {"wall_seconds": seconds, "results": results}))


if __name__ == "__main__":
    main()
