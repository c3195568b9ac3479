"""What `show` prints of a plan or a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.artifacts.report import report_columns
from hlscore.artifacts.selection import Column, Filters
from hlscore.errors import ArtifactError
from hlscore.records import ModuleRow, ScoreReport
from hlscore.scores.registry import SCORES
from hlscore.scores.rows import standard_error
from hlscore.views.commands import plan_command
from hlscore.views.drawings import print_heat_map
from hlscore.views.module_table import ModuleTable
from hlscore.views.result import print_plan_modules
from hlscore.views.summary import chosen_in, plan_headline, report_headline, run_notes, shape
from hlscore.views.terminal import Terminal, command, print_json
from hlscore.wording import count, measure, visible

_ALWAYS_SHOWN = ("rank", "module", "out_features", "in_features", "matrices")
_STATUSES = {"scored": "", "unreached": " (zero gradient)", "skipped": " (--status skipped: why)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What is shown of a file.

    Attributes:
        top: Most lines of a table; `None` for all.
    """

    path: Path
    filters: Filters
    top: int | None
    as_json: bool


def print_plan(plan: Plan, modules: Sequence[PlanModule], column: Column, shown: Shown) -> None:
    """Print a plan and those of its modules that are shown, in the order of a column."""
    if shown.as_json:
        _print_selected(plan, modules, column, shown)
        return
    console = Terminal()
    console.print(plan_headline(plan))
    if not _print_matching(console, len(modules), len(plan.modules), shown):
        return
    print_plan_modules(console, plan, modules, top=shown.top)
    console.notes(plan.notes)
    one = command("show", shown.path, "--module", modules[0].module)
    export = command("export", shown.path, "--to", "trl", "-o", "hybrid")
    console.next_steps(
        (one, "one module, and what it costs"),
        (export, "for your trainer; --list names the others"),
    )


def print_report(
    report: ScoreReport,
    rows: Sequence[ModuleRow],
    order: Column,
    columns: Sequence[Column],
    shown: Shown,
) -> None:
    """Print a report and those of its rows that are shown, in the order of a column."""
    if shown.as_json:
        _print_selected(report, rows, order, shown)
        return
    console, score = Terminal(), shown_score(report, order)
    console.print(report_headline(report))
    if not _print_matching(console, len(rows), len(report.rows), shown):
        return
    further = {column.field: column for column in (order, *columns)}
    more = [further[name] for name in further if name not in (*_ALWAYS_SHOWN, score)]
    of_run = score == report.run.score
    chosen = ["chosen in"] if of_run else []
    table = ModuleTable([score, "± se", *chosen, "out x in", *(column.name for column in more)])
    for row in rows[: shown.top]:
        table.add_row(
            measure(row.rank),
            row.module,
            measure(getattr(row, score)),
            measure(standard_error(resamples_of(row, score))),
            *([chosen_in(row.selection_probability)] if of_run else []),
            shape(row),
            *(measure(getattr(row, column.field)) for column in more),
            style="" if row.status == "scored" else "dim",
            remark=row.reason,
        )
    console.print()
    table.print(console, hidden=len(rows) - len(rows[: shown.top]))
    candidates = [row for row in rows if row.is_candidate]
    print_heat_map(console, candidates, score, lambda row: getattr(row, score), lambda _: False)
    console.print()
    found: Counter[str] = Counter(row.status for row in report.rows)
    parts = [f"{found[name]:,} {name}{why}" for name, why in _STATUSES.items() if found[name]]
    console.labelled([("modules", ", ".join(parts))])
    console.notes((*report.probes.notes, *run_notes(report)))
    one = command("show", shown.path, "--module", rows[0].module)
    console.next_steps(
        (one, "one module, and what LoRA of each rank misses"),
        (plan_command(report, shown.path, "-o", "plan.json"), "which to train in full"),
    )


def _print_selected(
    artifact: Plan | ScoreReport,
    modules: Sequence[PlanModule] | Sequence[ModuleRow],
    column: Column,
    shown: Shown,
) -> None:
    """Print the modules of a file that are shown, in order, as one JSON object."""
    kind, model, of = (
        ("plan", artifact.model.name, len(artifact.modules))
        if isinstance(artifact, Plan)
        else ("report", artifact.model.model, len(artifact.rows))
    )
    print_json({
        "file": shown.path,
        "artifact": kind,
        "model": model,
        "modules": of,
        "matching": len(modules),
        "sort": column.name,
        "rows": [plain(item) for item in modules[: shown.top]],
    })  # fmt: skip


def plain(item: PlanModule | ModuleRow) -> dict[str, Any]:
    """A module as plain data, without the replicates of its scores."""
    if isinstance(item, PlanModule):
        return item.model_dump(mode="json")
    left_out = {score.replicates_column for score in SCORES.values()}
    return {name: getattr(item, name) for name in report_columns() if name not in left_out}


def resamples_of(row: ModuleRow, score: str) -> tuple[float, ...]:
    """Resamples of a row's score; none where the row has no such score."""
    return () if getattr(row, score) is None else SCORES[score].replicates(row)


def shown_score(report: ScoreReport, column: Column | None = None) -> str:
    """The score that a view of a report shows: the one that orders it, or else that of the run."""
    if column is not None and column.field in SCORES:
        return column.field
    if report.run.score not in SCORES:
        raise ArtifactError(
            f"The report was ordered by '{report.run.score}', which this hlscore does not know.",
            hint=f"Give --sort with one of: {', '.join(SCORES)}.",
        )
    return report.run.score


def _print_matching(console: Terminal, number: int, of: int, shown: Shown) -> bool:
    """Print how many modules match, unless all do; whether there are any."""
    if not number:
        console.print()
        none = f"None of its {count(of, 'module')} matches {visible(str(shown.filters))}."
        console.print(Text(none if of else "It holds no modules."))
    elif number < of:
        console.print(Text(f"{number:,} of {count(of, 'module')}", style="yellow"))
    return number > 0
