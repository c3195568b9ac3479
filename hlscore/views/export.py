"""What `export` prints."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from rich.text import Text

from hlscore.exporters.exporter import Export, Exporter, exporter_names, find_exporter
from hlscore.views.terminal import Terminal, picked, plain_table, print_json
from hlscore.wording import count


def print_exporters(*, as_json: bool) -> None:
    """Print every format with what it can express."""
    able = {"full": "full", "lora": "LoRA", "ranks": "ranks", "parameters": "LoRA on experts"}
    found = []
    for item in map(find_exporter, exporter_names()):
        row = picked(item, "name", "summary") | picked(item.limits, *able)
        if not item.limits.lora:  # ranks, and what LoRA can sit on, are about trainers that have it
            row |= dict.fromkeys(set(able) - {"full"}, False)
        found.append(row | picked(item, "folder", "experimental"))
    if as_json:
        print_json(found)
        return
    texts = (*able.values(), "what comes out")
    table = plain_table("format", *texts, texts=texts)
    for row in found:
        note = " (experimental)" if row["experimental"] else ""
        flags = ("yes" if row[name] else "-" for name in able)
        table.add_row(row["name"], *flags, row["summary"] + note)
    console = Terminal()
    console.folded(table)
    console.print()
    console.print(Text("hlscore export plan.json --to NAME -o PATH", style="cyan"))


def print_export(
    exporter: Exporter,
    export: Export,
    target: Path,
    files: Collection[Path],
    *,
    changes: Sequence[str],
    notes: Sequence[str],
    as_json: bool,
) -> None:
    """Print what was written, file or folder, and how it is used."""
    if as_json:
        print_json({
            "format": exporter.name, "out": target, "files": list(files), "changes": changes,
            "notes": notes,
        })  # fmt: skip
        return
    console, plan, totals = Terminal(), export.plan, export.plan.totals
    modules = f"{count(totals.candidate_modules, 'module')} of {plan.model.name}"
    modes = (
        f"{totals.full_modules} full, {totals.lora_modules} LoRA, {totals.frozen_modules} frozen"
    )
    console.print(Text.assemble((exporter.name, "bold"), f"  {modes} of {modules}"))
    console.labelled(("wrote", str(path)) for path in files)
    console.notes(changes, label="changed")
    console.notes(notes)
    if exporter.usage:
        usage = exporter.usage.replace("{out}", str(target)).replace("{objective}", export.loss)
        console.next_steps((usage, ""))
