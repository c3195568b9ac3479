"""What `estimate` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.text import Text

from hlscore.planning.estimate import ModelShape, Training
from hlscore.settings import CandidateSettings, ModelSettings, PlanSettings, arguments
from hlscore.views.terminal import Terminal, command, picked, plain_table, print_json
from hlscore.wording import count, memory, short


def print_estimate(
    model: ModelSettings,
    candidates: CandidateSettings,
    shape: ModelShape,
    settings: PlanSettings,
    trainings: Sequence[Training],
    *,
    device_bytes: int | None,
    as_json: bool,
) -> None:
    """Print what each training takes, whether it fits a given device, and the next command."""
    if as_json:
        print_json({
            "model": model.model,
            "params": shape.n_params,
            "candidate_modules": len(shape.candidates),
            "budget": settings.budget,
            "rank": settings.rank,
            "settings": settings.memory,
            "device_bytes": device_bytes,
            "trainings": [
                asdict(item)
                | {
                    "memory": asdict(use) | picked(use, "state_bytes", "total_bytes"),
                    "fits": None if device_bytes is None else use.total_bytes <= device_bytes,
                }
                for item in trainings
                for use in (item.memory,)
            ],
        })  # fmt: skip
        return
    console, chosen = Terminal(), settings.memory
    console.print(
        Text.assemble(
            (model.model, "bold"),
            f" · {short(shape.n_params)} parameters · "
            f"{count(len(shape.candidates), 'candidate module')}\n",
            f"{chosen.optimizer}, {chosen.master} master weights, batches of "
            f"{chosen.train_batch} x {chosen.train_length} tokens, activation checkpointing",
        )
    )
    fits = [] if device_bytes is None else [f"in {memory(device_bytes)}"]
    sizes = ("trained", "weights", "gradients", "state", "activations", "total")
    table = plain_table("training", *sizes, *fits)
    for item in trainings:
        use = item.memory
        cells: list[str | Text] = [
            _label(item, settings),
            short(item.trained_params),
            memory(use.frozen_bytes + use.copy_bytes + use.full_bytes + use.adapter_bytes),
            memory(use.gradient_bytes),
            memory(use.optimizer_bytes),
            f"~ {memory(use.activation_bytes)}",
            Text(memory(use.total_bytes), style="bold"),
        ]
        if device_bytes is not None and use.total_bytes <= device_bytes:
            cells.append(Text("fits", style="green"))
        elif device_bytes is not None:
            cells.append(Text(f"{memory(use.total_bytes - device_bytes)} over", style="red"))
        table.add_row(*cells)
    console.print()
    console.whole(table)
    console.print()
    for note in _notes(shape, trainings):
        console.dim(note)
    words = [
        *arguments(ModelSettings, asdict(model), without=("model", "ignore_adapter")),
        *arguments(CandidateSettings, asdict(candidates)),
        *("--budget", settings.budget),
        *arguments(PlanSettings, asdict(settings), without=("budget",)),
    ]
    console.next_steps((command("rank", model.model, *words), "which modules to train in full"))


def _label(item: Training, settings: PlanSettings) -> str:
    if item.kind == "full":
        return "full"
    base = "" if item.base_bits == 16 else f", {item.base_bits} bit"
    if item.kind == "lora":
        return f"LoRA {settings.rank}{base}"
    if item.full_modules is None:
        return f"hybrid {settings.budget}{base}"
    return f"hybrid, {item.which} {item.full_modules}{base}"


def _notes(shape: ModelShape, trainings: Sequence[Training]) -> list[str]:
    hybrids = [item for item in trainings if item.kind == "hybrid"]
    number = max(item.full_modules or 0 for item in hybrids)
    notes = [
        f"a hybrid trains {number} of {len(shape.candidates)} modules in full; ranking decides "
        "which, and any choice takes between the smallest and the largest"
        if any(item.which == "smallest" for item in hybrids)
        else "a hybrid trains that many parameters in full, here spread evenly over all modules"
    ]
    if shape.dimensions.expert_params:
        notes.append("fused experts stay in 16 bits on any base")
    notes.append(
        "weights, gradients and optimizer are sums over tensors; activations (~) are an estimate; "
        "the allocator and CUDA itself take more"
    )
    return notes
