"""What `audit` prints: how far each module moved, and how much of its rank that took."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hlscore.agreement.kendall import tau_b
from hlscore.artifacts.plan import Plan
from hlscore.flow import Moved
from hlscore.records import ModuleRow, ScoreReport
from hlscore.views.headline import report_headline, run_notes
from hlscore.views.module_table import ModuleTable
from hlscore.views.terminal import print_next, print_notes, terminal
from hlscore.views.wording import count, measure, percent, shape, visible

_HARDLY = 0.1
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """A plan against what its training did.

    Attributes:
        path: The plan file.
        kendall: Kendall's tau-b of the plan's scores and the energies of the updates, by mode:
            modules in full and with LoRA move by different rates.
        frozen_moved: Modules that the plan freezes and that moved all the same.
        trained_unmoved: Modules that the plan trains and that did not move.
        other_rank: Modules whose LoRA has another rank than planned.
    """

    path: Path
    kendall: Mapping[str, float | None]
    frozen_moved: tuple[str, ...]
    trained_unmoved: tuple[str, ...]
    other_rank: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What a training did to a model.

    Attributes:
        report: The updates as a score report.
        movements: What the report has no columns for, by module.
        path: Where the report is.
        unmoved: Modules whose weight did not change.
        hardly: Modules that moved less than a tenth of the median of those that moved.
        exhausted: Modules with LoRA whose update needs its whole rank for 99 % of its energy.
        spare: Modules with LoRA whose update needs at most half of its rank for that.
        against: A plan against what happened, if one was given.
    """

    report: ScoreReport
    movements: Mapping[str, Moved]
    path: Path
    unmoved: tuple[str, ...]
    hardly: tuple[str, ...]
    exhausted: tuple[str, ...]
    spare: tuple[str, ...]
    against: Against | None


def audit_of(
    report: ScoreReport,
    movements: Mapping[str, Moved],
    path: Path,
    plan: tuple[Plan, Path] | None,
) -> Audit:
    """Tell which modules moved and which used their rank.

    Returns:
        The findings; module names in the order of the report.
    """
    moved = {name: found for name, found in movements.items() if found.rank_for_99 is not None
             or found.relative > 0}  # fmt: skip
    median = statistics.median(found.relative for found in moved.values())
    exhausted, spare = [], []
    for name, found in moved.items():
        if found.lora_rank and found.rank_for_99 is not None:
            if found.rank_for_99 >= found.lora_rank > 1:
                exhausted.append(name)
            elif 2 * found.rank_for_99 <= found.lora_rank:
                spare.append(name)
    return Audit(
        report=report,
        movements=movements,
        path=path,
        unmoved=tuple(name for name in movements if name not in moved),
        hardly=tuple(name for name, f in moved.items() if f.relative < _HARDLY * median),
        exhausted=tuple(exhausted),
        spare=tuple(spare),
        against=None if plan is None else _against(report, movements, *plan),
    )


def _against(
    report: ScoreReport, movements: Mapping[str, Moved], plan: Plan, path: Path
) -> Against:
    energies = {row.module: row.grad_energy for row in report.candidates}
    kendall = {}
    for mode in ("full", "lora"):
        items = [item for item in plan.modules if item.mode == mode and item.module in energies]
        kendall[mode] = tau_b(
            [item.score for item in items], [energies[item.module] for item in items]
        )
    known = [item for item in plan.modules if item.module in energies]
    return Against(
        path=path,
        kendall=kendall,
        frozen_moved=tuple(
            item.module for item in known if item.mode == "frozen" and energies[item.module]
        ),
        trained_unmoved=tuple(
            item.module for item in known if item.mode != "frozen" and not energies[item.module]
        ),
        other_rank=tuple(
            item.module
            for item in known
            if item.mode == "lora" and movements[item.module].lora_rank not in (item.rank, None)
        ),
    )


def print_audit(
    found: Audit, *, top: int | None, held_out: Mapping[str, Any] | None = None
) -> None:
    """Print what a training did.

    Args:
        top: Most lines of the table; `None` for all.
        held_out: Losses on other data, if they were measured.
    """
    console, report = terminal(), found.report
    rank = report.run.rank
    console.print(report_headline(report), soft_wrap=True)
    console.print()
    numbers = ("moved", "rank 90 %", "rank 99 %", "stable rank", f"beyond rank {rank}", "size")
    table = ModuleTable(numbers, ("trained",))
    rows = sorted(report.candidates, key=lambda row: -found.movements[row.module].relative)
    for place, row in enumerate(rows[:top], start=1):
        table.add_row(*_cells(place, row, found.movements[row.module]))
    table.leave_out(len(rows) - len(rows[:top]))
    table.print(console)
    console.print()
    for line in _findings(found):
        console.print(line, soft_wrap=True)
    if held_out is not None:
        console.print(held_out_line(held_out), soft_wrap=True)
    print_notes(console, run_notes(report))
    console.print()
    console.print(f"audit  {found.path}", soft_wrap=True)
    file = shlex.quote(str(found.path))
    print_next(
        console,
        (
            f"hlscore plan {file} --ranks 4,8,16,32 --budget 0.1p -o next.json",
            "the next plan, from what this training needed",
        ),
        (f"hlscore show {file} --sort rgn --columns effective_rank,tail", "every column"),
    )


def _cells(place: int, row: ModuleRow, moved: Moved) -> list[str]:
    beyond = "-" if row.residual_ratio is None else percent(row.residual_ratio)
    trained = f"r {moved.lora_rank}" if moved.lora_rank else "full"
    return [
        str(place),
        row.module,
        percent(moved.relative),
        "-" if row.rank_for_90 is None else str(row.rank_for_90),
        "-" if moved.rank_for_99 is None else str(moved.rank_for_99),
        measure(row.stable_rank),
        beyond,
        shape(row.matrices, row.out_features, row.in_features),
        "no" if row.status == "unreached" else trained,
    ]


def _findings(found: Audit) -> list[str]:
    """What a reader should know, a line each."""
    full = [name for name, each in found.movements.items()
            if not each.lora_rank and name not in found.unmoved]  # fmt: skip
    lora = [name for name, each in found.movements.items() if each.lora_rank]
    lines = []
    for label, names in (("full", full), ("LoRA", lora)):
        moved = [found.movements[name].relative for name in names if name not in found.unmoved]
        if moved:
            lines.append(
                f"{label:<8}{count(len(names), 'module')}, moved by {percent(min(moved))} to "
                f"{percent(max(moved))} of the weight, median {percent(statistics.median(moved))}"
            )
    told = (
        (
            "used up",
            found.exhausted,
            "need all of their rank for 99 % of the update, and could use more",
        ),
        ("spare", found.spare, "need at most half of their rank for 99 % of the update"),
        ("hardly", found.hardly, "moved less than a tenth of the median"),
        ("unmoved", found.unmoved, "did not change"),
    )
    for label, some, what in told:
        if some:
            lines.append(f"{label:<8}{count(len(some), 'module')} {what}: {_some(some)}")
    if found.against is not None:
        lines += _plan_lines(found.against)
    return lines


def _plan_lines(against: Against) -> list[str]:
    taus = ", ".join(
        f"{tau:.2f} over the modules {'in full' if mode == 'full' else 'with LoRA'}"
        for mode, tau in against.kendall.items()
        if tau is not None
    )
    lines = [f"plan    its scores against the updates' energies: Kendall's tau {taus or '-'}"]
    differing: tuple[tuple[tuple[str, ...], str], ...] = (
        (against.trained_unmoved, "planned to train, did not move"),
        (against.frozen_moved, "planned to be frozen, moved"),
        (against.other_rank, "have another rank than planned"),
    )
    for modules, what in differing:
        if modules:
            lines.append(f"        {count(len(modules), 'module')} {what}: {_some(modules)}")
    return lines


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def held_out_line(held_out: Mapping[str, Any]) -> str:
    """Losses on the same data in a line."""
    losses = ", ".join(f"{name} {loss:.4f}" for name, loss in held_out["losses"].items())
    return (
        f"loss    {losses} nats per token on {count(held_out['examples'], 'example')} of "
        f"{visible(held_out['source'])}"
    )


def print_audit_json(found: Audit, *, held_out: Mapping[str, Any] | None = None) -> None:
    """Print the findings as one JSON object.

    Args:
        held_out: Losses on other data, if they were measured.
    """
    modules = [
        {
            "module": row.module,
            "relative_update": found.movements[row.module].relative,
            "lora_rank": found.movements[row.module].lora_rank,
            "rank_for_90": row.rank_for_90,
            "rank_for_99": found.movements[row.module].rank_for_99,
            "stable_rank": row.stable_rank,
            "effective_rank": row.effective_rank,
            "energy": row.grad_energy,
            "beyond_rank": row.residual_ratio,
            "changed": row.status == "scored",
        }
        for row in found.report.candidates
    ]
    lists = ("unmoved", "hardly", "exhausted", "spare")
    against = None
    if found.against is not None:
        against = asdict(found.against) | {"path": str(found.against.path)}
    print(
        json.dumps(
            {
                "audit": str(found.path),
                "model": found.report.model.model,
                "rank": found.report.run.rank,
                "modules": modules,
                **{name: list(getattr(found, name)) for name in lists},
                "plan": against,
                "held_out": held_out,
                "notes": list(run_notes(found.report)),
            }
        )
    )
