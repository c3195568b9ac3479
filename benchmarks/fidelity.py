"""How near does the sketch estimator come to exact gradients, by sketch size?

Run it with `python benchmarks/fidelity.py`. Each model is run once with exact gradients and then
with sketches of several sizes, on the same probes in the same halves; only the test matrices
change with the seed. The built-in model is a trained one, the others have random weights and
probes with a signal. Compared are the order of the modules, the choice of the best tenth, the
values, and how often the stated errors hold the true ones.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from machine import parsed, print_table, write_result
from models import build, score, settings_for, structured_probes
from rich.progress import track
from scipy.stats import spearmanr
from transformers import PreTrainedModel

from hlscore.inputs.examples import BUILTIN_KNOWN, read_examples
from hlscore.inputs.model import load_model
from hlscore.planning.budget import parse_budget
from hlscore.probes.encode import encode
from hlscore.probes.units import ProbeSet
from hlscore.records import ModuleRow
from hlscore.settings import DEFAULT_RANK, DataSettings, ModelSettings, RankSettings

BUILTIN = "builtin:tiny"
MODELS = (BUILTIN, "qwen3-60m", "gpt2-124m", "qwen3-moe-80m")
BUDGET = "0.1"
# LoRA ranks: at 16, most weights of the built-in model are narrow enough to be kept whole.
RANKS = {BUILTIN: (16, 4)}

Rows = dict[str, ModuleRow]


# Columns per rank; 8 are the default.
COLUMNS = (2, 4, 8)


# --- running ----------------------------------------------------------------------------------


def load(name: str, options: argparse.Namespace) -> tuple[PreTrainedModel, ProbeSet]:
    """A model and its probes."""
    if name != BUILTIN:
        model = build(name, device=options.device)
        return model, structured_probes(model, examples=options.examples, length=options.length)
    loaded = load_model(ModelSettings(model=name, device=options.device))
    examples = read_examples(
        DataSettings(data=BUILTIN_KNOWN, samples=options.builtin_examples), seed=0
    )
    probes = encode(examples, loaded.tokenizer, loaded.model, max_length=None, groups=8, seed=0)
    return loaded.model, probes


def run(
    model: PreTrainedModel, probes: ProbeSet, settings: RankSettings
) -> tuple[Rows, float, float]:
    """Score every module."""
    began = time.perf_counter()
    report = score(model, probes, settings).report
    seconds = time.perf_counter() - began
    return {row.module: row for row in report.candidates}, seconds, report.probes.mean_loss


def settings_of(
    name: str, rank: int, options: argparse.Namespace, size: int | None, seed: int = 0
) -> RankSettings:
    """Settings of one run; exact gradients, with standard errors, without a size."""
    settings = settings_for(
        name,
        rank,
        batch_size=options.batch_size,
        checkpointing=False,
        estimator="exact" if size is None else "sketch",
        sketch_size=size,
        bootstrap=200 if size is None else 0,
        svd=options.svd,
    )
    return replace(settings, plan=replace(settings.plan, budget=BUDGET), seed=seed)


# --- comparing --------------------------------------------------------------------------------


def compare(exact: Rows, found: Rows) -> dict[str, Any]:
    """Compare the rows of one sketch run with those of exact gradients.

    Modules that rank r reaches completely, such as small routers, are left out: there is no tail.
    The order is that of all others; errors are those of the ones that were not kept whole.
    """
    names = with_tail(exact)
    sketched = [name for name in names if found[name].grad_energy_error > 0]
    clear = [name for name in names if exact[name].hls > (exact[name].hls_stderr or 0.0)]
    figures: dict[str, Any] = {
        "modules_sketched": len(sketched),
        "spearman_tail": _spearman(exact, found, names, "tail"),
        "spearman_hls": _spearman(exact, found, names, "hls"),
        "spearman_hls_clear": _spearman(exact, found, clear, "hls"),
        "top_tail_kept": _kept(exact, found, "tail"),
        "top_hls_kept": _kept(exact, found, "hls"),
    }
    if not sketched:
        return figures
    for column in ("tail_energy", "grad_energy"):
        wrong = _column(found, sketched, column) / _column(exact, sketched, column) - 1
        figures[column] = {
            "median_error": float(np.median(np.abs(wrong))),
            "median_bias": float(np.median(wrong)),
            "worst_error": float(np.abs(wrong).max()),
        }
    off = np.abs(_column(found, sketched, "hls") - _column(exact, sketched, "hls"))
    noise = off / _column(exact, sketched, "hls_stderr")
    figures["hls_error_over_stderr"] = {
        "median": float(np.median(noise)),
        "worst": float(noise.max()),
    }
    figures["stated"] = {
        column: _within(exact, found, sketched, column)
        for column in ("tail_energy", "hls", "grad_energy")
    }
    return figures


def with_tail(rows: Rows) -> list[str]:
    """Names of the modules that have energy beyond the LoRA rank."""
    return sorted(name for name, row in rows.items() if row.tail_energy > 0)


def _column(rows: Rows, names: Sequence[str], column: str) -> np.ndarray:
    return np.array([getattr(rows[name], column) for name in names], dtype=np.float64)


def _spearman(exact: Rows, found: Rows, names: Sequence[str], column: str) -> float | None:
    if len(names) < 3:
        return None
    given = spearmanr(_column(exact, names, column), _column(found, names, column))
    return float(given.statistic)


def _kept(exact: Rows, found: Rows, column: str) -> float:
    """Share of the modules that the budget allows which both runs put first."""
    count = parse_budget(BUDGET).limit([row.n_params for row in exact.values()])
    chosen = [
        set(sorted(rows, key=lambda name: -getattr(rows[name], column))[:count])
        for rows in (exact, found)
    ]
    return len(chosen[0] & chosen[1]) / count


def _within(exact: Rows, found: Rows, names: Sequence[str], column: str) -> dict[str, float]:
    """How often the true error is within the stated one, and within twice it."""
    off = np.abs(_column(found, names, column) - _column(exact, names, column))
    ratios = off / _column(found, names, f"{column}_error")
    return {
        "within_1": float((ratios <= 1).mean()),
        "within_2": float((ratios <= 2).mean()),
        "median_ratio": float(np.median(ratios)),
        "worst_ratio": float(ratios.max()),
    }


def measure(name: str, rank: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one model with every arm and seed."""
    model, probes = load(name, options)
    exact, seconds, loss = run(model, probes, settings_of(name, rank, options, None))
    rows = [exact[module] for module in with_tail(exact)]
    content: dict[str, Any] = {
        "model": name,
        "rank": rank,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "modules": len(exact),
        "modules_with_tail": len(rows),
        "modules_with_clear_hls": sum(row.hls > row.hls_stderr for row in rows),
        "probes": probes.summary.source,
        "examples": probes.summary.examples,
        "counted_tokens": probes.summary.counted_tokens,
        "mean_loss": loss,
        "exact_seconds": round(seconds, 2),
        "largest_stated_error_of_exact": {
            "tail_over_tail": max(row.tail_energy_error / row.tail_energy for row in rows),
            "hls_over_stderr": max(row.hls_error / row.hls_stderr for row in rows),
        },
        "arms": [],
    }
    seeds = range(options.seeds or (3 if name == BUILTIN else 1))
    jobs = [(each * rank, seed) for each in COLUMNS for seed in seeds]
    for size, seed in track(jobs, description=f"{name}, rank {rank}", transient=True):
        gc.collect()
        found, seconds, _ = run(model, probes, settings_of(name, rank, options, size, seed))
        figures = {"sketch_size": size, "seed": seed}
        content["arms"].append(figures | {"seconds": round(seconds, 2)} | compare(exact, found))
    return content


# --- telling ----------------------------------------------------------------------------------


def table_rows(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Cells of one model: means over the seeds, and the worst error of all of them."""
    runs: dict[int, list[Mapping[str, Any]]] = {}
    for item in content["arms"]:
        runs.setdefault(item["sketch_size"], []).append(item)
    return [
        (
            f"{content['model']}, {content['rank']}",
            str(size),
            f"{group[0]['modules_sketched']} of {content['modules_with_tail']}",
            _mean(group, "spearman_tail"),
            f"{_mean(group, 'spearman_hls_clear')} ({content['modules_with_clear_hls']})",
            f"{_mean(group, 'top_hls_kept')} {_mean(group, 'top_tail_kept')}",
            f"{_mean(group, 'tail_energy', 'median_error')} {_worst(group, 'tail_energy')}",
            f"{_mean(group, 'grad_energy', 'median_error')} {_worst(group, 'grad_energy')}",
            " ".join(_mean(group, "stated", "tail_energy", f"within_{n}") for n in (1, 2)),
            " ".join(_mean(group, "stated", "hls", f"within_{n}") for n in (1, 2)),
            _mean(group, "seconds"),
        )
        for size, group in runs.items()
    ]


def _mean(group: Sequence[Mapping[str, Any]], *path: str) -> str:
    values: list[Any] = list(group)
    for key in path:
        values = [value.get(key) for value in values if value is not None]
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.3f}" if known else "-"


def _worst(group: Sequence[Mapping[str, Any]], column: str) -> str:
    known = [item[column]["worst_error"] for item in group if column in item]
    return f"{max(known):.3f}" if known else "-"


def main() -> None:
    """Run, print a table, write a dated JSON."""
    options = parsed(
        __doc__, models={"nargs": "+", "default": list(MODELS), "choices": MODELS},
        svd={"default": "auto", "choices": ["auto", "full", "randomized"]},
        seeds={"type": int, "help": "seeds per arm; 3 of the built-in model, else 1"},
        examples={"type": int, "default": 48, "help": "of the random models"},
        length={"type": int, "default": 64, "help": "of the random models"},
        builtin_examples=256, batch_size=8, threads=2, device="cpu",
    )  # fmt: skip
    began = time.perf_counter()
    results = [
        measure(name, rank, options)
        for name in options.models
        for rank in RANKS.get(name, (DEFAULT_RANK,))
    ]
    print_table(
        ("model, rank", "k", "sketched", "rho of tail", "rho of clear hls (of how many)",
         "top tenth kept: hls, tail", "tail error: median, worst", "energy error: median, worst",
         "tail within 1, 2 errors", "hls within 1, 2 errors", "seconds"),
        [cells for content in results for cells in table_rows(content)],
    )  # fmt: skip
    content = {"settings": vars(options) | {"budget": BUDGET}, "results": results}
    seconds = round(time.perf_counter() - began, 1)
    print(write_result("fidelity", {"wall_seconds": seconds, **content}))


if __name__ == "__main__":
    main()
