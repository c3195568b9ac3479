"""What `modules` and `estimate` print of a model without weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

from rich.text import Text

from hlscore.planning.memory import TrainingMemory
from hlscore.records import Candidate, ModelShape
from hlscore.settings import CandidateSettings, ModelSettings, PlanSettings, arguments
from hlscore.views.summary import weight_bytes
from hlscore.views.terminal import Terminal, command, picked, plain_table, print_json
from hlscore.wording import count, measure, memory, percent, short


def print_modules(
    found: Sequence[Candidate], model: str, total: int, *, show_all: bool, as_json: bool
) -> None:
    """Print the modules of a model of `total` parameters, by kind or with `show_all` one by one."""
    if as_json:
        modules = [asdict(item) | {"reason": item.reason} for item in found]
        print_json({"model": model, "params": total, "modules": modules})
        return
    console = Terminal()
    candidates = [item for item in found if not item.skipped]
    skipped = len(found) - len(candidates)
    params = sum(item.n_params for item in candidates)
    if show_all:
        last = "skipped because"
        table = plain_table("module", "layer", "out x in", "parameters", last, texts=(last,))
        for item in found:
            cells = (item.module, measure(item.layer), item.size, f"{item.n_params:,}")
            table.add_row(*cells, item.reason, style="dim" if item.skipped else None)
    else:
        groups: dict[tuple[str, str, str], list[Candidate]] = defaultdict(list)
        for item in candidates:
            groups[item.block, item.kind, item.size].append(item)
        headings = ("kind", "layers", "out x in", "parameters each", "parameters")
        table = plain_table(*headings, texts=("layers",))
        for (block, kind, size), items in groups.items():
            layers = sorted({item.layer for item in items if item.layer is not None})
            shown = ",".join(map(str, layers)) or "-"
            if len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1)):
                shown = f"{layers[0]}-{layers[-1]}"
            each, together = items[0].n_params, sum(item.n_params for item in items)
            name = f"{block}.{kind}" if block else kind
            table.add_row(name, shown, size, f"{each:,}", f"{together:,}")
    console.folded(table)
    console.print()
    console.print(
        Text.assemble(
            (model, "bold"),
            f": {count(len(candidates), 'candidate module')}, {short(params)} of {short(total)} "
            f"parameters ({percent(params / total)}); {count(skipped, 'weight')} skipped",
        )
    )
    if skipped and not show_all:
        console.dim("--all lists each module, and why others are skipped")


def print_estimate(
    model: ModelSettings,
    candidates: CandidateSettings,
    shape: ModelShape,
    settings: PlanSettings,
    trainings: Sequence[TrainingMemory],
    *,
    device_bytes: int | None,
    as_json: bool,
) -> None:
    """Print what each training takes, whether it fits a given device, and the next command."""
    if as_json:
        found = []
        for item in trainings:
            use = item.memory
            found.append(asdict(item) | {
                "memory": asdict(use) | picked(use, "state_bytes", "total_bytes"),
                "fits": None if device_bytes is None else use.total_bytes <= device_bytes,
            })  # fmt: skip
        print_json({
            "model": model.model, "params": shape.n_params,
            "candidate_modules": len(shape.candidates), **picked(settings, "budget", "rank"),
            "settings": settings.memory, "device_bytes": device_bytes, "trainings": found,
        })  # fmt: skip
        return
    console, chosen = Terminal(), settings.memory
    modules = count(len(shape.candidates), "candidate module")
    console.print(
        Text.assemble(
            (model.model, "bold"),
            f" · {short(shape.n_params)} parameters · {modules}\n"
            f"{chosen.optimizer}, {chosen.master} master weights, batches of "
            f"{chosen.train_batch} x {chosen.train_length} tokens, activation checkpointing\n",
        )
    )
    fits = [] if device_bytes is None else [f"in {memory(device_bytes)}"]
    sizes = ("trained", "weights", "gradients", "state", "activations", "total")
    table = plain_table("training", *sizes, *fits)
    for item in trainings:
        use = item.memory
        label: str = item.kind
        if item.kind == "lora":
            label = f"LoRA {settings.rank}"
        elif item.kind == "hybrid":
            label = f"hybrid {settings.budget}"
            if item.full_modules is not None:
                label = f"hybrid, {item.which} {item.full_modules}"
        cells: list[str | Text] = [
            label if item.base_bits == 16 else f"{label}, {item.base_bits} bit",
            short(item.trained_params), memory(weight_bytes(use)), memory(use.gradient_bytes),
            memory(use.optimizer_bytes), f"~ {memory(use.activation_bytes)}",
            Text(memory(use.total_bytes), style="bold"),
        ]  # fmt: skip
        if device_bytes is not None:
            over = use.total_bytes - device_bytes
            fit = Text("fits", style="green") if over <= 0 else None
            cells.append(fit or Text(f"{memory(over)} over", style="red"))
        table.add_row(*cells)
    console.whole(table)
    console.print()
    if any(item.which == "smallest" for item in trainings):
        number = max(item.full_modules or 0 for item in trainings if item.kind == "hybrid")
        console.dim(
            f"a hybrid trains {number} of {len(shape.candidates)} modules in full; ranking decides "
            "which, and any choice takes between the smallest and the largest"
        )
    else:
        console.dim(
            "a hybrid trains that many parameters in full, here spread evenly over all modules"
        )
    if shape.dimensions.expert_params:
        console.dim("fused experts stay in 16 bits on any base")
    console.dim(
        "weights, gradients and optimizer are sums over tensors; activations (~) are an estimate; "
        "the allocator and CUDA itself take more"
    )
    words = [
        *arguments(ModelSettings, asdict(model), without=("model",)),
        *arguments(CandidateSettings, asdict(candidates)),
        *("--budget", settings.budget),
        *arguments(PlanSettings, asdict(settings), without=("budget",)),
    ]
    console.next_steps((command("rank", model.model, *words), "which modules to train in full"))
