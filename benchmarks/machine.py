"""Where and with what a benchmark was run: part of every result file."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hlscore._version import __version__

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, object]:
    """Hardware and versions of this machine."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "numpy")},
        "hlscore": __version__,
    }


def write_result(name: str, content: Mapping[str, object]) -> Path:
    """Write a dated result file and give its path."""
    today = datetime.now(tz=UTC).date().isoformat()
    path = RESULTS / f"{name}_{today}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps({"date": today, "machine": describe(), **content}, indent=2) + "\n")
    return path


def cpu_peak_bytes(work: Callable[[], object]) -> int:
    """Largest sum of tensor memory that some work allocates on the CPU, as the profiler counts."""
    gc.collect()
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    return max(accumulate(size for _, size in sorted(events)))


def processor() -> str:
    """Name of the processor, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def parsed(description: str | None, **options: Any) -> argparse.Namespace:
    """The command line of a script; torch computes with the threads that it asks for.

    Args:
        description: Docstring of the script; its first line is shown.
        **options: By name the default, or the arguments of `add_argument`.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    for name, given in options.items():
        how = given if isinstance(given, dict) else {"type": type(given), "default": given}
        parser.add_argument(f"--{name.replace('_', '-')}", **how)
    found = parser.parse_args()
    if "threads" in options:
        torch.set_num_threads(found.threads)
    return found


def print_table(heads: Sequence[str], rows: Iterable[Sequence[object]], **options: Any) -> None:
    """Print a table, with options of rich for its looks."""
    table = Table(*heads, **options)
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=150).print(table)
