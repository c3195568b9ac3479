"""What `modules` prints."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from hlscore.records import Candidate
from hlscore.views.terminal import terminal
from hlscore.views.wording import count, percent, shape, short


def print_modules(found: Sequence[Candidate], *, model: str, total: int, show_all: bool) -> None:
    """Print the modules of a model, by kind or one by one.

    Args:
        show_all: One line per module instead of one per kind.
    """
    console = terminal()
    chosen = [item for item in found if not item.skipped]
    skipped = [item for item in found if item.skipped]
    params = sum(item.n_params for item in chosen)
    console.print(_all_table(found) if show_all else _kind_table(chosen))
    console.print()
    console.print(
        Text.assemble(
            (model, "bold"),
            f": {count(len(chosen), 'candidate module')}, {short(params)} of {short(total)} "
            f"parameters ({percent(params / total)}); {count(len(skipped), 'weight')} skipped",
        ),
        soft_wrap=True,
    )
    if skipped and not show_all:
        console.print(Text("--all lists each module, and why others are skipped", style="dim"))


def print_modules_json(found: Sequence[Candidate], *, model: str, total: int) -> None:
    """Print the modules of a model as one JSON object."""
    modules = [asdict(item) | {"reason": item.reason} for item in found]
    print(json.dumps({"model": model, "params": total, "modules": modules}))


def _kind_table(chosen: Sequence[Candidate]) -> Table:
    groups: dict[tuple[str, str, str], list[Candidate]] = defaultdict(list)
    for item in chosen:
        size = shape(item.matrices, item.out_features, item.in_features)
        groups[item.block, item.kind, size].append(item)
    table = _table("kind", "layers", "out x in", "parameters each", "parameters")
    for (block, kind, size), items in groups.items():
        table.add_row(
            f"{block}.{kind}" if block else kind,
            _layers(items),
            size,
            f"{items[0].n_params:,}",
            f"{sum(item.n_params for item in items):,}",
        )
    return table


def _all_table(found: Sequence[Candidate]) -> Table:
    table = _table("module", "layer", "out x in", "parameters", "skipped because")
    for item in found:
        table.add_row(
            item.module,
            "-" if item.layer is None else str(item.layer),
            shape(item.matrices, item.out_features, item.in_features),
            f"{item.n_params:,}",
            item.reason,
            style="dim" if item.skipped else None,
        )
    return table


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for name in numbers:
        left = name in ("skipped because", "layers")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    return table


def _layers(items: Sequence[Candidate]) -> str:
    layers = sorted({item.layer for item in items if item.layer is not None})
    if not layers:
        return "-"
    if layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1:
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(str(layer) for layer in layers)
