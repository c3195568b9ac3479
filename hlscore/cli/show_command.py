"""`hlscore show`: a plan or a score report in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hlscore.cli import options as o
from hlscore.errors import UsageError

if TYPE_CHECKING:
    from hlscore.artifacts.plan import Plan
    from hlscore.artifacts.report import Resamples
    from hlscore.artifacts.selection import Filters
    from hlscore.records import RunInfo, ScoreReport

_FILTER_PANEL = "Which modules"
_SHOWN = "15"


def show(
    file: Annotated[
        Path, typer.Argument(help="A plan.json or a scores.parquet.", show_default=False)
    ],
    module: Annotated[
        str | None,
        typer.Option(
            "--module",
            "-m",
            help="All about one module: its full name, or an end of it that no other one has.",
            rich_help_panel=_FILTER_PANEL,
            show_default=False,
        ),
    ] = None,
    match: Annotated[
        list[str],
        typer.Option(
            "--match",
            help="Only modules whose full name matches this glob (repeatable).",
            rich_help_panel=_FILTER_PANEL,
            default_factory=list,
            show_default=False,
        ),
    ] = ...,  # type: ignore[assignment]
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            help="Only this kind, such as down_proj or self_attn.q_proj.",
            rich_help_panel=_FILTER_PANEL,
            show_default=False,
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer",
            help="Only this layer, or these: 3 or 0-5.",
            rich_help_panel=_FILTER_PANEL,
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        Literal["full", "lora", "frozen"] | None,
        typer.Option(
            "--mode",
            help="Only what a plan trains so.",
            rich_help_panel=_FILTER_PANEL,
            show_default=False,
        ),
    ] = None,
    status: Annotated[
        Literal["scored", "unreached", "skipped"] | None,
        typer.Option(
            "--status",
            help="Only rows of a report with this status.",
            rich_help_panel=_FILTER_PANEL,
            show_default=False,
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            help="Order by this: place, module, layer, kind, params, a score, or another column. "
            "Numbers fall, places and names rise.",
            rich_help_panel=o.OUTPUT_PANEL,
            show_default="place in a plan, the run's score in a report",
        ),
    ] = None,
    reverse: Annotated[
        bool,
        typer.Option("--reverse", help="Turn the order round.", rich_help_panel=o.OUTPUT_PANEL),
    ] = False,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            help="Further columns of a report's table, such as tail,residual_ratio.",
            rich_help_panel=o.OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    top: Annotated[
        str | None,
        typer.Option(
            "--top",
            help="Modules to show in the table; 0 or all for every one.",
            rich_help_panel=o.OUTPUT_PANEL,
            show_default=f"{_SHOWN}; all with --json",
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Look at a plan or a score report: table, heat map, and any one module.

    **Examples**

    `hlscore show hlscore-out/builtin-tiny/plan.json --mode full`

    `hlscore show scores.parquet --sort tail --columns residual_ratio,stable_rank --layer 0-3`

    `hlscore show scores.parquet --module layers.0.mlp.down_proj`
    """
    from hlscore.artifacts.plan import Plan
    from hlscore.artifacts.reading import is_report, read_artifact, uncollected
    from hlscore.artifacts.selection import Filters

    filters = Filters(
        match=tuple(match), kind=kind, layers=_layers(layer), mode=mode, status=status
    )
    shown = _top(top if top is not None else "all" if as_json else _SHOWN)
    tables = {"--sort": sort, "--reverse": reverse or None, "--columns": columns, "--top": top}
    if module is not None:
        _refuse(tables, "is for tables; --module shows one module")
    if as_json:
        _refuse({"--columns": columns}, "is for tables; --json prints every column")
    shown_resamples = _resamples(module, sort, as_json=as_json) if is_report(file) else None
    with uncollected():
        artifact = read_artifact(file, resamples=shown_resamples)
    if isinstance(artifact, Plan):
        _refuse({"--status": status, "--columns": columns}, "is for a scores.parquet, not a plan")
        _show_plan(artifact, file, filters, module, sort, shown, reverse=reverse, as_json=as_json)
    else:
        _refuse({"--mode": mode}, "is for a plan.json, not for scores")
        names = [] if columns is None else [name.strip() for name in columns.split(",")]
        _show_report(
            artifact, file, filters, module, sort, names, shown, reverse=reverse, as_json=as_json
        )


def _show_plan(
    plan: Plan,
    file: Path,
    filters: Filters,
    module: str | None,
    sort: str | None,
    top: int | None,
    *,
    reverse: bool,
    as_json: bool,
) -> None:
    from hlscore.artifacts.selection import find_column, find_module, ordered, plan_columns
    from hlscore.views.show import Shown, print_modules_json, print_plan
    from hlscore.views.show_module import print_plan_module, print_plan_module_json

    by_place = sorted(plan.modules, key=lambda item: item.position)
    picked = filters.pick(by_place)
    if module is not None:
        item = find_module(picked, module, filters)
        (print_plan_module_json if as_json else print_plan_module)(plan, item, file)
        return
    column = find_column(plan_columns(plan), "place" if sort is None else sort, "--sort")
    found = ordered(picked, column, reverse=reverse)
    chosen = Shown(path=file, filters=filters, column=column, top=top)
    if as_json:
        print_modules_json(plan, found, chosen)
    else:
        print_plan(plan, found, chosen)


def _show_report(
    report: ScoreReport,
    file: Path,
    filters: Filters,
    module: str | None,
    sort: str | None,
    names: list[str],
    top: int | None,
    *,
    reverse: bool,
    as_json: bool,
) -> None:
    from hlscore.artifacts.selection import (
        all_rows,
        find_column,
        find_module,
        ordered,
        report_columns,
    )
    from hlscore.views.show import Shown, print_modules_json, print_report, shown_score
    from hlscore.views.show_module import print_report_module, print_report_module_json

    picked = filters.pick(all_rows(report))
    if module is not None:
        row = find_module(picked, module, filters)
        (print_report_module_json if as_json else print_report_module)(report, row, file)
        return
    known = report_columns()
    column = find_column(known, shown_score(report) if sort is None else sort, "--sort")
    more = [find_column(known, name, "--columns") for name in names]
    found = ordered(picked, column, reverse=reverse)
    chosen = Shown(path=file, filters=filters, column=column, top=top)
    if as_json:
        print_modules_json(report, found, chosen)
    else:
        print_report(report, found, chosen, more)


def _resamples(module: str | None, sort: str | None, *, as_json: bool) -> Resamples:
    """Resamples that are shown: of every score of a module, of the one score of a table."""
    from hlscore.artifacts.report import Resamples
    from hlscore.scores.registry import SCORES

    def scores(run: RunInfo) -> tuple[str, ...]:
        if module is not None:
            return tuple(SCORES)
        return () if as_json else (sort or run.score, run.score)

    return Resamples(scores=scores)


def _refuse(options: Mapping[str, object], why: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise UsageError(f"{option} {why}.")


def _layers(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, dash, last = text.partition("-")
    ends = (first, last if dash else first)
    if not all(end.isascii() and end.isdecimal() and len(end) < 10 for end in ends):
        raise UsageError(f"--layer is '{text}'.", hint="Use one layer, 3, or several, 0-5.")
    if int(ends[0]) > int(ends[1]):
        raise UsageError(f"--layer {text} ends before it begins.")
    return int(ends[0]), int(ends[1])


def _top(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError(f"--top is '{text}'.", hint="Use a number of modules, or all.")
    return int(text) or None
