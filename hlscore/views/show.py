"""What `show` prints of a plan or a report."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.artifacts.report import report_schema
from hlscore.artifacts.selection import Column, Filters
from hlscore.errors import ArtifactError
from hlscore.records import ModuleRow, ScoreReport
from hlscore.scores.registry import SCORES
from hlscore.scores.rows import standard_error
from hlscore.views.choice import chosen_in, print_choice
from hlscore.views.commands import plan_again
from hlscore.views.headline import plan_headline, report_headline, run_notes
from hlscore.views.heatmap import Cell, print_heat_map
from hlscore.views.module_table import ModuleTable
from hlscore.views.terminal import print_next, print_notes, terminal
from hlscore.views.wording import count, measure, shape, visible

_ALWAYS_SHOWN = ("rank", "module", "out_features", "in_features", "matrices")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is shown of a file.

    Attributes:
        path: The file.
        filters: What was asked of the modules.
        column: What orders them.
        top: Most lines of a table; `None` for all.
    """

    path: Path
    filters: Filters
    column: Column
    top: int | None


def print_plan(plan: Plan, modules: Sequence[PlanModule], asked: Asked) -> None:
    """Print a plan.

    Args:
        modules: Those of its modules that are shown, in order.
    """
    console = terminal()
    console.print(plan_headline(plan), soft_wrap=True)
    if not modules:
        _print_nothing(asked, len(plan.modules))
        return
    if len(modules) < len(plan.modules):
        _print_part(len(modules), len(plan.modules))
    print_choice(console, plan, modules, top=asked.top)
    print_notes(console, plan.notes)
    file, module = shlex.quote(str(asked.path)), shlex.quote(modules[0].module)
    print_next(
        console,
        (f"hlscore show {file} --module {module}", "one module, and what it costs"),
        (f"hlscore export {file} --to trl -o hybrid", "for your trainer; --list names the others"),
    )


def print_report(
    report: ScoreReport, rows: Sequence[ModuleRow], asked: Asked, columns: Sequence[Column]
) -> None:
    """Print a report.

    Args:
        rows: Those of its rows that are shown, in order.
    """
    console, score = terminal(), shown_score(report, asked.column)
    console.print(report_headline(report), soft_wrap=True)
    if not rows:
        _print_nothing(asked, len(report.rows))
        return
    if len(rows) < len(report.rows):
        _print_part(len(rows), len(report.rows))
    further = {column.field: column for column in (asked.column, *columns)}
    more = [further[name] for name in further if name not in (*_ALWAYS_SHOWN, score)]
    console.print()
    _table(report, rows, score, more, asked.top).print(console)
    cells = [Cell(at=row, score=getattr(row, score)) for row in rows if row.is_candidate]
    print_heat_map(console, cells, score=score)
    console.print()
    console.print(_counts(report), soft_wrap=True)
    print_notes(console, (*report.probes.notes, *run_notes(report)))
    file, module = shlex.quote(str(asked.path)), shlex.quote(rows[0].module)
    print_next(
        console,
        (f"hlscore show {file} --module {module}", "one module, and what each rank leaves over"),
        (plan_again(report, asked.path, "-o", "plan.json"), "which to train in full"),
    )


def print_modules_json(
    artifact: Plan | ScoreReport, modules: Sequence[PlanModule | ModuleRow], asked: Asked
) -> None:
    """Print modules as one JSON object.

    Args:
        modules: Those of its modules that are shown, in order.
    """
    if isinstance(artifact, Plan):
        kind, model, of = "plan", artifact.model.name, len(artifact.modules)
    else:
        kind, model, of = "report", artifact.model.model, len(artifact.rows)
    found: dict[str, Any] = {
        "file": str(asked.path),
        "artifact": kind,
        "model": model,
        "modules": of,
        "matching": len(modules),
        "sort": asked.column.name,
        "rows": [plain(item) for item in modules[: asked.top]],
    }
    print(json.dumps(found))


def plain(item: PlanModule | ModuleRow) -> dict[str, Any]:
    """A module as plain data; the replicates of its scores are left to the file itself."""
    if isinstance(item, PlanModule):
        return item.model_dump(mode="json")
    left_out = {score.resampled for score in SCORES.values()}
    return {name: getattr(item, name) for name in report_schema().names if name not in left_out}


def resamples_of(row: ModuleRow, score: str) -> tuple[float, ...]:
    """Resamples of a row's score; none where the row has no such score."""
    return () if getattr(row, score) is None else SCORES[score].replicates(row)


def shown_score(report: ScoreReport, column: Column | None = None) -> str:
    """The score that a view of a report is about.

    Returns:
        The score that orders them, or else that of the run.
    """
    if column is not None and column.field in SCORES:
        return column.field
    if report.run.score not in SCORES:
        raise ArtifactError(
            f"The report was ordered by '{report.run.score}', which is no score of this hlscore.",
            hint=f"Give --sort with one of: {', '.join(SCORES)}.",
        )
    return report.run.score


def _table(
    report: ScoreReport,
    rows: Sequence[ModuleRow],
    score: str,
    more: Sequence[Column],
    top: int | None,
) -> ModuleTable:
    shown, ours = rows[:top], score == report.run.score
    chosen = ["chosen in"] if ours else []
    table = ModuleTable([score, "± se", *chosen, "out x in", *(column.name for column in more)])
    for row in shown:
        table.add_row(
            "-" if row.rank is None else str(row.rank),
            row.module,
            measure(getattr(row, score)),
            measure(standard_error(resamples_of(row, score))),
            *([chosen_in(row.selection_probability)] if ours else []),
            shape(row.matrices, row.out_features, row.in_features),
            *(_value(getattr(row, column.field)) for column in more),
            style=None if row.status == "scored" else "dim",
            remark=row.reason,
        )
    table.leave_out(len(rows) - len(shown))
    return table


def _value(value: object) -> str:
    if isinstance(value, float):
        return measure(value)
    return "-" if value is None else str(value)


def _counts(report: ScoreReport) -> Text:
    found: Counter[str] = Counter(row.status for row in report.rows)
    said = {
        "scored": "",
        "unreached": " (zero gradient)",
        "skipped": " (--status skipped tells why)",
    }
    parts = [f"{found[status]:,} {status}{why}" for status, why in said.items() if found[status]]
    return Text.assemble(("modules ", "bold"), ", ".join(parts))


def _print_part(number: int, of: int) -> None:
    terminal().print(Text(f"{number:,} of {count(of, 'module')}", style="yellow"))


def _print_nothing(asked: Asked, of: int) -> None:
    console = terminal()
    console.print()
    said = f"None of its {count(of, 'module')} matches {visible(str(asked.filters))}."
    console.print(Text(said if of else "It holds no modules."), soft_wrap=True)
