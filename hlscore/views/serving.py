"""What `extract-lora` and `merge` print."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from hlscore.serving.plain_adapter import ENGINE_RANKS, PlainAdapter
from hlscore.views.audit import held_out_line
from hlscore.views.module_table import ModuleTable
from hlscore.views.terminal import Terminal, print_json
from hlscore.wording import count, percent


def print_plain_adapter(
    found: PlainAdapter,
    held_out: Mapping[str, object] | None,
    model: str,
    out: Path,
    *,
    top: int,
    as_json: bool,
) -> None:
    """Print which updates were truncated, and by how much, with losses if they were measured."""
    if as_json:
        content = {"adapter": out, "rank": found.rank, "modules": found.modules}
        print_json(content | {"held_out": held_out})
        return
    console = Terminal()
    lossy = sorted((each for each in found.modules if each.error), key=lambda each: -each.error)
    if lossy:
        table = ModuleTable(("rank", "error"), ("trained",))
        for place, each in enumerate(lossy[:top], start=1):
            cells = (str(each.rank), percent(each.error), each.trained)
            table.add_row(str(place), each.module, *cells)
        table.print(console, hidden=len(lossy) - top)
        console.print()
    lost = f" with up to {percent(lossy[0].error)} of the update's norm lost" if lossy else ""
    console.print(
        f"{count(len(found.modules), 'module')} as LoRA of rank {found.rank}: "
        f"{len(found.modules) - len(lossy):,} exact, {len(lossy):,} truncated{lost}"
    )
    if held_out is not None:
        console.labelled([held_out_line(held_out)])
    console.print(f"adapter  {out}")
    allowed = next(rank for rank in ENGINE_RANKS if rank >= found.rank)
    serve = (
        f"vllm serve {shlex.quote(model)} --enable-lora --max-lora-rank {allowed} "
        f"--lora-modules hybrid={shlex.quote(str(out))}"
    )
    console.next_steps((serve, "serve it beside other adapters"))


def print_merged(out: Path, changed: int, paths: Mapping[str, Path], *, as_json: bool) -> None:
    """Print where a merged model is, and how many of its tensors changed."""
    if as_json:
        print_json({"merged": out, "changed_tensors": changed, "files": paths})
        return
    console = Terminal()
    console.print(f"merged  {out}: {count(changed, 'tensor')} changed")
    console.next_steps((f"vllm serve {shlex.quote(str(out))}", "serve it"))
