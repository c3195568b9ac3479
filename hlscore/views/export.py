"""What `export` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from hlscore.artifacts.plan import Plan
from hlscore.exporters.exporter import Exporter, exporter_names, find_exporter
from hlscore.views.terminal import terminal
from hlscore.views.wording import count


def print_exporters() -> None:
    """Print every format with what it can express."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("format", "full", "LoRA", "ranks", "experts", "what comes out"):
        table.add_column(column, overflow="fold")
    for name in exporter_names():
        item = find_exporter(name)
        limits = item.limits
        able = (limits.full, limits.lora, limits.ranks, limits.parameters)
        summary = f"{item.summary} (experimental)" if item.experimental else item.summary
        table.add_row(name, *("yes" if can else "-" for can in able), summary)
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
    console = terminal()
    totals = plan.totals
    modes = ((totals.full_modules, "full"), (totals.lora_modules, "LoRA"),
             (totals.frozen_modules, "frozen"))  # fmt: skip
    console.print(
        Text.assemble(
            (exporter.name, "bold"),
            f"  {', '.join(f'{number} {mode}' for number, mode in modes)} "
            f"of {count(totals.candidate_modules, 'module')} of {plan.model.name}",
        ),
        soft_wrap=True,
    )
    for path in paths.values():
        console.print(Text.assemble(("wrote   ", "bold"), str(path)), soft_wrap=True)
    for change in changes:
        console.print(Text.assemble(("changed: ", "yellow"), change), soft_wrap=True)
    for note in notes:
        console.print(Text.assemble(("note: ", "yellow"), note), soft_wrap=True)
    if exporter.usage:
        console.print()
        console.print(Text("next", style="bold"))
        usage = exporter.usage.replace("{out}", str(result))
        probed = plan.provenance.probes.objective
        usage = usage.replace("{objective}", "sft" if probed == "none" else probed)
        console.print(Text(f"  {usage}", style="cyan"), soft_wrap=True)


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
