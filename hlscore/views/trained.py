"""What is printed of finished trainings, by `audit`, `extract-lora` and `merge`."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hlscore.flow.audit import Audit
from hlscore.serving import ENGINE_RANKS, PlainAdapter
from hlscore.views.summary import headline, run_notes
from hlscore.views.terminal import ModuleLine, Terminal, command, picked, print_json
from hlscore.wording import count, first_of, measure, percent, visible

_NAMED = 3
# Groups of modules by their name in JSON: label and what is said of them.
_GROUPS = {
    "exhausted": (
        "used up",
        "need their whole rank for 99 % of the update; a larger rank may help",
    ),
    "spare": ("spare", "need at most half of their rank for 99 % of the update"),
    "hardly": ("hardly", "moved less than a tenth of the median"),
    "unmoved": ("unmoved", "did not change"),
}
_PLAN_GROUPS = {
    "trained_unmoved": "planned to train, did not move",
    "frozen_moved": "planned to be frozen, moved",
    "other_rank": "have another rank than planned",
}


def print_audit(
    found: Audit,
    path: Path,
    plan: Path | None,
    held_out: Mapping[str, Any] | None,
    *,
    top: int,
    as_json: bool,
) -> None:
    """Print what a training did, with losses on other data, if they were measured.

    Args:
        path: Of the report.
        plan: Path of the plan of the training, if one was given.
    """
    report, movements = found.report, found.movements
    if as_json:
        modules = []
        for row in report.candidates:
            moved = movements[row.module]
            modules.append({
                "module": row.module, "relative_update": moved.relative,
                "lora_rank": moved.lora_rank, "rank_for_90": row.rank_for_90,
                "rank_for_99": moved.rank_for_99, **picked(row, "stable_rank", "effective_rank"),
                "energy": row.grad_energy, "beyond_rank": row.residual_ratio,
                "changed": row.status == "scored",
            })  # fmt: skip
        print_json({
            "audit": path, "model": report.model.model, "rank": report.run.rank,
            "modules": modules, **found.groups,
            "plan": found.against and {"path": plan, **found.against},
            "held_out": held_out, "notes": run_notes(report),
        })  # fmt: skip
        return
    console = Terminal()
    console.print(headline(report))
    console.print()
    beyond = f"beyond rank {report.run.rank}"
    headings = ("moved", "rank 90 %", "rank 99 %", "stable rank", beyond, "size", "trained")
    rows = sorted(report.candidates, key=lambda row: -movements[row.module].relative)
    lines = []
    for place, row in enumerate(rows[:top], start=1):
        moved = movements[row.module]
        trained = f"r {moved.lora_rank}" if moved.lora_rank else "full"
        cells = (
            str(place), row.module, percent(moved.relative), measure(row.rank_for_90),
            measure(moved.rank_for_99), measure(row.stable_rank), percent(row.residual_ratio),
            row.size, "no" if row.status == "unreached" else trained,
        )  # fmt: skip
        lines.append(ModuleLine(cells))
    console.modules(headings, lines, of=len(rows), texts=1)
    console.print()
    console.labelled(_findings(found))
    _print_losses(console, held_out)
    console.notes(run_notes(report))
    console.print()
    console.print(f"audit  {path}")
    options = ("--ranks", "4,8,16,32", "--budget", "0.1p", "-o", "next.json")
    columns = ("--sort", "rgn", "--columns", "effective_rank,tail")
    console.next_steps(
        (command("plan", path, *options), "the next plan, from the ranks that this training used"),
        (command("show", path, *columns), "every column"),
    )


def _findings(found: Audit) -> Iterator[tuple[str, str]]:
    """What a reader should know: labels and texts."""
    for label, with_lora in (("full", False), ("LoRA", True)):
        moved = [
            movement.relative
            for name, movement in found.movements.items()
            if name not in found.groups["unmoved"] and bool(movement.lora_rank) == with_lora
        ]
        if moved:
            low, middle, high = map(percent, (min(moved), statistics.median(moved), max(moved)))
            modules = count(len(moved), "module")
            yield label, f"{modules}, moved by {low} to {high} of the weight, median {middle}"

    def named(names: Sequence[str], what: str) -> str:
        found = f"{count(len(names), 'module')} {what}: {first_of(names, _NAMED)}"
        return found if names else ""

    for group, (label, what) in _GROUPS.items():
        yield label, named(found.groups[group], what)
    if found.against is None:
        return
    taus = ", ".join(
        f"{tau:.2f} over the modules {'in full' if mode == 'full' else 'with LoRA'}"
        for mode, tau in found.against["kendall"].items()
        if tau is not None
    )
    yield "plan", f"Kendall's tau between its scores and the energies of the updates: {taus or '-'}"
    for group, what in _PLAN_GROUPS.items():
        yield "", named(found.against[group], what)


def _print_losses(console: Terminal, held_out: Mapping[str, Any] | None) -> None:
    if held_out is not None:
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in held_out["losses"].items())
        data = f"{count(held_out['examples'], 'example')} of {visible(held_out['source'])}"
        console.labelled([("loss", f"{losses} nats per token on {data}")])


def print_plain_adapter(
    found: PlainAdapter,
    held_out: Mapping[str, Any] | None,
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
    lost = ""
    if lossy:
        lines = (
            ModuleLine((str(place), each.module, str(each.rank), percent(each.error), each.trained))
            for place, each in enumerate(lossy[:top], start=1)
        )
        console.modules(("rank", "error", "trained"), lines, of=len(lossy), texts=1)
        console.print()
        lost = f" with up to {percent(lossy[0].error)} of the update's norm lost"
    console.print(
        f"{count(len(found.modules), 'module')} as LoRA of rank {found.rank}: "
        f"{len(found.modules) - len(lossy):,} exact, {len(lossy):,} truncated{lost}"
    )
    _print_losses(console, held_out)
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
