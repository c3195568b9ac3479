"""What `audit` prints: how far each module moved, and how much of its rank that took."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hlscore.agreement.kendall import tau_b
from hlscore.artifacts.plan import Plan
from hlscore.flow import Moved
from hlscore.records import ScoreReport
from hlscore.views.module_table import ModuleTable
from hlscore.views.summary import report_headline, run_notes, shape
from hlscore.views.terminal import Terminal, command, picked, print_json
from hlscore.wording import count, measure, percent, visible

_HARDLY = 0.1
_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCheck:
    """A plan compared with what its training did; modules by name.

    Attributes:
        kendall: Kendall's tau-b of the plan's scores and the energies of the updates, by mode:
            modules in full and with LoRA move by different rates.
    """

    path: Path
    kendall: Mapping[str, float | None]
    frozen_moved: tuple[str, ...]
    trained_unmoved: tuple[str, ...]
    other_rank: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What a training did to a model; names of modules are in the order of the report.

    Attributes:
        movements: What the report has no columns for, by module.
        path: Where the report is.
        hardly: Modules that moved less than a tenth of the median of those that moved.
        exhausted: Modules with LoRA whose update needs its whole rank for 99 % of its energy.
        spare: Modules with LoRA whose update needs at most half of its rank for that.
    """

    report: ScoreReport
    movements: Mapping[str, Moved]
    path: Path
    unmoved: tuple[str, ...]
    hardly: tuple[str, ...]
    exhausted: tuple[str, ...]
    spare: tuple[str, ...]
    against: PlanCheck | None


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
    return Audit(
        report=report,
        movements=movements,
        path=path,
        unmoved=tuple(name for name in movements if name not in moved),
        hardly=tuple(name for name, f in moved.items() if f.relative < _HARDLY * median),
        exhausted=tuple(exhausted),
        spare=tuple(
            name for name, need, rank in needed if 2 * need <= rank and name not in exhausted
        ),
        against=None if plan is None else _plan_check(report, movements, *plan),
    )


def _plan_check(
    report: ScoreReport, movements: Mapping[str, Moved], plan: Plan, path: Path
) -> PlanCheck:
    energies = {row.module: row.grad_energy for row in report.candidates}
    known = [item for item in plan.modules if item.module in energies]
    kendall = {}
    for mode in ("full", "lora"):
        items = [item for item in known if item.mode == mode]
        kendall[mode] = tau_b(
            [item.score for item in items], [energies[item.module] for item in items]
        )
    moved = {name for name, energy in energies.items() if energy}
    frozen = {item.module for item in known if item.mode == "frozen"}
    names = [item.module for item in known]
    return PlanCheck(
        path=path,
        kendall=kendall,
        frozen_moved=tuple(name for name in names if name in frozen and name in moved),
        trained_unmoved=tuple(name for name in names if name not in frozen | moved),
        other_rank=tuple(
            item.module
            for item in known
            if item.mode == "lora" and movements[item.module].lora_rank not in (item.rank, None)
        ),
    )


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
    lora = [name for name, each in found.movements.items() if each.lora_rank]
    full = [name for name in found.movements if name not in {*lora, *found.unmoved}]
    for label, names in (("full", full), ("LoRA", lora)):
        moved = [found.movements[name].relative for name in names if name not in found.unmoved]
        if moved:
            low, middle, high = map(percent, (min(moved), statistics.median(moved), max(moved)))
            modules = count(len(names), "module")
            yield label, f"{modules}, moved by {low} to {high} of the weight, median {middle}"
    used_up = "need their whole rank for 99 % of the update; a larger rank may help"
    yield "used up", _named(found.exhausted, used_up)
    yield "spare", _named(found.spare, "need at most half of their rank for 99 % of the update")
    yield "hardly", _named(found.hardly, "moved less than a tenth of the median")
    yield "unmoved", _named(found.unmoved, "did not change")
    if found.against is None:
        return
    taus = ", ".join(
        f"{tau:.2f} over the modules {'in full' if mode == 'full' else 'with LoRA'}"
        for mode, tau in found.against.kendall.items()
        if tau is not None
    )
    yield "plan", f"Kendall's tau between its scores and the energies of the updates: {taus or '-'}"
    yield "", _named(found.against.trained_unmoved, "planned to train, did not move")
    yield "", _named(found.against.frozen_moved, "planned to be frozen, moved")
    yield "", _named(found.against.other_rank, "have another rank than planned")


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
        **picked(found, "unmoved", "hardly", "exhausted", "spare"),
        "plan": found.against,
        "held_out": held_out,
        "notes": run_notes(found.report),
    })  # fmt: skip
