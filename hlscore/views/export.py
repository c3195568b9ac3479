"""What `export` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.text import Text

from hlscore.artifacts.plan import Plan
from hlscore.exporters.exporter import Exporter, exporter_names, find_exporter
from hlscore.views.terminal import plain_table, print_labelled, print_next, print_notes, terminal
from hlscore.views.wording import count


def print_exporters() -> None:
    """Print every format with what it can express."""
    able = ("full", "LoRA", "ranks", "experts")
    table = plain_table("format", *able, "what comes out", texts=(*able, "what comes out"))
    for name in exporter_names():
        item = find_exporter(name)
        limits = item.limits
        flags = (limits.full, limits.lora, limits.ranks, limits.parameters)
        summary = f"{item.summary} (experimental)" if item.experimental else item.summary
        table.add_row(name, *("yes" if flag else "-" for flag in flags), summary)
    console = terminal()
    console.print(table)
    console.print()
    console.print(Text("hlscore export plan.json --to NAME --out PATH", style="cyan"))


def print_exporters_json() -> None:
    """Print every format as JSON."""
    found = []
    for name in exporter_names():
        item = find_exporter(name)
        limits = item.limits
        found.append(
            {
                "name": name,
                "summary": item.summary,
                "full": limits.full,
                "lora": limits.lora,
                "ranks": limits.ranks,
                "parameters": limits.parameters,
                "folder": item.folder,
                "experimental": item.experimental,
            }
        )
    print(json.dumps(found))


def print_export(
    exporter: Exporter,
    plan: Plan,
    result: Path,
    paths: Mapping[str, Path],
    *,
    changes: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Print what was written and how it is used."""
    console, totals = terminal(), plan.totals
    modes = (
        f"{totals.full_modules} full, {totals.lora_modules} LoRA, {totals.frozen_modules} frozen"
    )
    modules = count(totals.candidate_modules, "module")
    console.print(
        Text.assemble((exporter.name, "bold"), f"  {modes} of {modules} of {plan.model.name}"),
        soft_wrap=True,
    )
    print_labelled(console, [("wrote", str(path)) for path in paths.values()])
    print_notes(console, changes, label="changed")
    print_notes(console, notes)
    if exporter.usage:
        probed = plan.provenance.probes.objective
        usage = exporter.usage.replace("{out}", str(result))
        print_next(
            console, (usage.replace("{objective}", "sft" if probed == "none" else probed), "")
        )


def print_export_json(
    exporter: Exporter,
    result: Path,
    paths: Mapping[str, Path],
    *,
    changes: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Print the same as one JSON object."""
    print(
        json.dumps(
            {
                "format": exporter.name,
                "out": str(result),
                "files": [str(path) for path in paths.values()],
                "changes": list(changes),
                "notes": list(notes),
            }
        )
    )
