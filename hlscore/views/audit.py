"""What `audit` prints: how far each module moved, and how much of its rank that took."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hlscore.agreement.measures import kendall
from hlscore.artifacts.plan import Plan
from hlscore.flow import Moved
from hlscore.records import ScoreReport
from hlscore.views.module_table import ModuleTable
from hlscore.views.summary import report_headline, run_notes, shape
from hlscore.views.terminal import Terminal, command, print_json
from hlscore.wording import count, measure, percent, visible

_HARDLY = 0.1
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What a training did to a model.

    Attributes:
        movements: What the report has no columns for, by module.
        path: Where the report is.
        groups: Modules by what became of them, in the order of the report.
        against: The plan of the training compared with what happened, if one was given: its path,
            Kendall's tau-b of its scores and the energies of the updates by mode (modules in full
            and with LoRA move by different rates), and groups of modules.
    """

    report: ScoreReport
    movements: Mapping[str, Moved]
    path: Path
    groups: Mapping[str, Sequence[str]]
    against: Mapping[str, Any] | None


def audit_of(
    report: ScoreReport, movements: Mapping[str, Moved], path: Path, plan: tuple[Plan, Path] | None
) -> Audit:
    """Find which modules moved and which used their rank."""
    moved = {
        name: found
        for name, found in movements.items()
        if found.rank_for_99 is not None or found.relative > 0
    }
    median = statistics.median(found.relative for found in moved.values())
    needed = [
        (name, found.rank_for_99, found.lora_rank)
        for name, found in moved.items()
        if found.lora_rank and found.rank_for_99 is not None
    ]
    exhausted = [name for name, need, rank in needed if need >= rank > 1]
    groups = {
        "unmoved": [name for name in movements if name not in moved],
        "hardly": [name for name, found in moved.items() if found.relative < _HARDLY * median],
        "exhausted": exhausted,
        "spare": [
            name for name, need, rank in needed if 2 * need <= rank and name not in exhausted
        ],
    }
    against = None if plan is None else _compared(report, movements, *plan)
    return Audit(report=report, movements=movements, path=path, groups=groups, against=against)


def _compared(
    report: ScoreReport, movements: Mapping[str, Moved], plan: Plan, path: Path
) -> dict[str, Any]:
    energies = {row.module: row.grad_energy for row in report.candidates}
    known = [item for item in plan.modules if item.module in energies]
    taus = {}
    for mode in ("full", "lora"):
        items = [item for item in known if item.mode == mode]
        taus[mode] = kendall(
            [item.score for item in items], [energies[item.module] for item in items]
        ).tau
    return {
        "path": path,
        "kendall": taus,
        "frozen_moved": [
            item.module for item in known if item.mode == "frozen" and energies[item.module]
        ],
        "trained_unmoved": [
            item.module for item in known if item.mode != "frozen" and not energies[item.module]
        ],
        "other_rank": [
            item.module
            for item in known
            if item.mode == "lora" and movements[item.module].lora_rank not in (item.rank, None)
        ],
    }


def print_audit(
    found: Audit, *, top: int, held_out: Mapping[str, Any] | None, as_json: bool
) -> None:
    """Print what a training did, with losses on other data, if they were measured."""
    if as_json:
        _print_json(found, held_out)
        return
    console, report = Terminal(), found.report
    console.print(report_headline(report))
    console.print()
    rank = f"beyond rank {report.run.rank}"
    table = ModuleTable(
        ("moved", "rank 90 %", "rank 99 %", "stable rank", rank, "size"), ("trained",)
    )
    rows = sorted(report.candidates, key=lambda row: -found.movements[row.module].relative)
    for place, row in enumerate(rows[:top], start=1):
        moved = found.movements[row.module]
        trained = f"r {moved.lora_rank}" if moved.lora_rank else "full"
        table.add_row(
            str(place),
            row.module,
            percent(moved.relative),
            measure(row.rank_for_90),
            measure(moved.rank_for_99),
            measure(row.stable_rank),
            percent(row.residual_ratio),
            shape(row),
            "no" if row.status == "unreached" else trained,
        )
    table.print(console, hidden=len(rows) - len(rows[:top]))
    console.print()
    console.labelled(_findings(found))
    if held_out is not None:
        console.labelled([held_out_line(held_out)])
    console.notes(run_notes(report))
    console.print()
    console.print(f"audit  {found.path}")
    options = ("--ranks", "4,8,16,32", "--budget", "0.1p", "-o", "next.json")
    columns = ("--sort", "rgn", "--columns", "effective_rank,tail")
    console.next_steps(
        (
            command("plan", found.path, *options),
            "the next plan, from the ranks that this training used",
        ),
        (command("show", found.path, *columns), "every column"),
    )


def _findings(found: Audit) -> Iterable[tuple[str, str]]:
    """What a reader should know: labels and texts."""
    unmoved = found.groups["unmoved"]
    lora = [name for name, each in found.movements.items() if each.lora_rank]
    full = [name for name in found.movements if name not in {*lora, *unmoved}]
    for label, names in (("full", full), ("LoRA", lora)):
        moved = [found.movements[name].relative for name in names if name not in unmoved]
        if moved:
            low, middle, high = map(percent, (min(moved), statistics.median(moved), max(moved)))
            modules = count(len(names), "module")
            yield label, f"{modules}, moved by {low} to {high} of the weight, median {middle}"
    for group, (label, what) in _GROUPS.items():
        yield label, _named(found.groups[group], what)
    if found.against is None:
        return
    taus = ", ".join(
        f"{tau:.2f} over the modules {'in full' if mode == 'full' else 'with LoRA'}"
        for mode, tau in found.against["kendall"].items()
        if tau is not None
    )
    yield "plan", f"Kendall's tau between its scores and the energies of the updates: {taus or '-'}"
    for group, what in _PLAN_GROUPS.items():
        yield "", _named(found.against[group], what)


def _named(names: Sequence[str], what: str) -> str:
    """How many modules, what of them, and the first names; empty without modules."""
    if not names:
        return ""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{count(len(names), 'module')} {what}: {', '.join(names[:_NAMED])}{more}"


def held_out_line(held_out: Mapping[str, Any]) -> tuple[str, str]:
    """Losses on the same data: label and text."""
    losses = ", ".join(f"{name} {loss:.4f}" for name, loss in held_out["losses"].items())
    data = f"{count(held_out['examples'], 'example')} of {visible(held_out['source'])}"
    return "loss", f"{losses} nats per token on {data}"


def _print_json(found: Audit, held_out: Mapping[str, Any] | None) -> None:
    modules = [
        {
            "module": row.module,
            "relative_update": moved.relative,
            "lora_rank": moved.lora_rank,
            "rank_for_90": row.rank_for_90,
            "rank_for_99": moved.rank_for_99,
            "stable_rank": row.stable_rank,
            "effective_rank": row.effective_rank,
            "energy": row.grad_energy,
            "beyond_rank": row.residual_ratio,
            "changed": row.status == "scored",
        }
        for row in found.report.candidates
        for moved in (found.movements[row.module],)
    ]
    print_json({
        "audit": found.path,
        "model": found.report.model.model,
        "rank": found.report.run.rank,
        "modules": modules,
        **found.groups,
        "plan": found.against,
        "held_out": held_out,
        "notes": run_notes(found.report),
    })  # fmt: skip
