"""What `estimate` prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlscore.planning.estimate import ModelShape, Training
from hlscore.settings import CandidateSettings, ModelSettings, PlanSettings, arguments
from hlscore.views.commands import model_options, plan_options
from hlscore.views.terminal import terminal
from hlscore.views.wording import count, memory, short


def print_estimate(
    model: ModelSettings,
    candidates: CandidateSettings,
    shape: ModelShape,
    settings: PlanSettings,
    trainings: Sequence[Training],
    *,
    device_bytes: int | None,
    console: Console | None = None,
) -> None:
    """Print what each training takes, and the next command.

    Args:
        device_bytes: Memory of the device; `None` if that was not given.
        console: Where to print; standard output by default.
    """
    console = console or terminal()
    console.print(_headline(model.model, shape, settings), soft_wrap=True)
    console.print()
    console.print(_table(settings, trainings, device_bytes))
    console.print()
    for note in _notes(shape, trainings):
        console.print(Text(note, style="dim"), soft_wrap=True)
    words = [
        *model_options(asdict(model), without=("ignore_adapter",)),
        *arguments(CandidateSettings, asdict(candidates)),
        *("--budget", settings.budget),
        *plan_options(asdict(settings), without=("budget",)),
    ]
    command = shlex.join(["hlscore", "rank", model.model, *words])
    console.print()
    console.print(Text("next", style="bold"))
    console.print(Text.assemble("  ", ("# which modules to train in full", "dim")))
    console.print(Text.assemble("  ", (command, "cyan")), soft_wrap=True)


def print_estimate_json(
    model: str,
    shape: ModelShape,
    settings: PlanSettings,
    trainings: Sequence[Training],
    *,
    device_bytes: int | None,
) -> None:
    """Print the same as one JSON object.

    Args:
        device_bytes: Memory of the device; `None` if that was not given.
    """
    print(
        json.dumps(
            {
                "model": model,
                "params": shape.n_params,
                "candidate_modules": len(shape.candidates),
                "budget": settings.budget,
                "rank": settings.rank,
                "settings": asdict(settings.memory),
                "device_bytes": device_bytes,
                "trainings": [_plain(item, device_bytes) for item in trainings],
            }
        )
    )


def _plain(item: Training, device_bytes: int | None) -> dict[str, object]:
    use = item.memory
    return asdict(item) | {
        "memory": asdict(use) | {"state_bytes": use.state_bytes, "total_bytes": use.total_bytes},
        "fits": None if device_bytes is None else use.total_bytes <= device_bytes,
    }


def _headline(model: str, shape: ModelShape, settings: PlanSettings) -> Text:
    chosen = settings.memory
    return Text.assemble(
        (model, "bold"),
        f" · {short(shape.n_params)} parameters · "
        f"{count(len(shape.candidates), 'candidate module')}\n",
        f"{chosen.optimizer}, {chosen.master} master weights, batches of {chosen.train_batch} x "
        f"{chosen.train_length} tokens, activation checkpointing",
    )


def _table(
    settings: PlanSettings,
    trainings: Sequence[Training],
    device_bytes: int | None,
) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("training", overflow="fold")
    names = ("trained", "weights", "gradients", "state", "activations", "total")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    if device_bytes is not None:
        table.add_column(f"in {memory(device_bytes)}", justify="right", no_wrap=True)
    for item in trainings:
        use, fits = item.memory, Text("fits", style="green")
        weights = use.frozen_bytes + use.copy_bytes + use.full_bytes + use.adapter_bytes
        sizes = (use.gradient_bytes, use.optimizer_bytes)
        if device_bytes is not None and use.total_bytes > device_bytes:
            fits = Text(f"{memory(use.total_bytes - device_bytes)} over", style="red")
        table.add_row(
            _label(item, settings),
            short(item.trained_params),
            memory(weights),
            *(memory(size) for size in sizes),
            f"~ {memory(use.activation_bytes)}",
            Text(memory(use.total_bytes), style="bold"),
            *(() if device_bytes is None else (fits,)),
        )
    return table


def _label(item: Training, settings: PlanSettings) -> str:
    if item.kind == "full":
        return "full"
    base = "" if item.base_bits == 16 else f", {item.base_bits} bit"
    if item.kind == "lora":
        return f"LoRA {settings.rank}{base}"
    if item.full_modules is None:
        return f"hybrid {settings.budget}{base}"
    return f"hybrid, {item.which} {item.full_modules}{base}"


def _notes(shape: ModelShape, trainings: Sequence[Training]) -> tuple[str, ...]:
    hybrids = {item.which for item in trainings if item.kind == "hybrid"}
    number = max(item.full_modules or 0 for item in trainings if item.kind == "hybrid")
    which = (
        f"a hybrid trains {number} of {len(shape.candidates)} modules in full; which, is not known "
        "before they are ranked: any choice lies between the smallest and the largest"
        if "smallest" in hybrids
        else "a hybrid with that many parameters in full, spread over all modules alike: whole "
        "modules differ by little"
    )
    packed = (
        ("fused experts stay in 16 bits on any base",) if shape.dimensions.expert_params else ()
    )
    return (
        which,
        *packed,
        "weights, gradients and optimizer are sums over tensors; activations (~) are an estimate; "
        "the allocator and CUDA itself take more",
    )
