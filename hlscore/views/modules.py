"""What `modules` prints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from hlscore.records import Candidate
from hlscore.views.summary import shape
from hlscore.views.terminal import Terminal, plain_table, print_json
from hlscore.wording import count, measure, percent, short


def print_modules(
    found: Sequence[Candidate], model: str, total: int, *, show_all: bool, as_json: bool
) -> None:
    """Print the modules of a model, a line per kind, or one per module with `show_all`."""
    if as_json:
        modules = [asdict(item) | {"reason": item.reason} for item in found]
        print_json({"model": model, "params": total, "modules": modules})
        return
    console = Terminal()
    candidates = [item for item in found if not item.skipped]
    skipped = len(found) - len(candidates)
    params = sum(item.n_params for item in candidates)
    console.folded(_all_table(found) if show_all else _kind_table(candidates))
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


def _kind_table(candidates: Sequence[Candidate]) -> Table:
    groups: dict[tuple[str, str, str], list[Candidate]] = defaultdict(list)
    for item in candidates:
        size = shape(item)
        groups[item.block, item.kind, size].append(item)
    headings = ("kind", "layers", "out x in", "parameters each", "parameters")
    table = plain_table(*headings, texts=("layers",))
    for (block, kind, size), items in groups.items():
        layers = sorted({item.layer for item in items if item.layer is not None})
        shown = ",".join(map(str, layers)) or "-"
        if len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1)):
            shown = f"{layers[0]}-{layers[-1]}"
        table.add_row(
            f"{block}.{kind}" if block else kind,
            shown,
            size,
            f"{items[0].n_params:,}",
            f"{sum(item.n_params for item in items):,}",
        )
    return table


def _all_table(found: Sequence[Candidate]) -> Table:
    headings = ("module", "layer", "out x in", "parameters", "skipped because")
    table = plain_table(*headings, texts=("skipped because",))
    for item in found:
        table.add_row(
            item.module,
            measure(item.layer),
            shape(item),
            f"{item.n_params:,}",
            item.reason,
            style="dim" if item.skipped else None,
        )
    return table
