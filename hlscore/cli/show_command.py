"""`hlscore show`: a plan or a score report in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.settings import Option

if TYPE_CHECKING:
    from hlscore.artifacts.plan import Plan
    from hlscore.records import RunInfo

_FILTER_PANEL = "Which modules"
_SHOWN = 15


def _layers(text: str, flag: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    ends = (first, last if dash else first)
    if not all(end.isascii() and end.isdecimal() and len(end) < 10 for end in ends):
        raise UsageError(f"{flag} is '{text}'.", hint="Use one layer, 3, or several, 0-5.")
    if int(ends[0]) > int(ends[1]):
        raise UsageError(f"{flag} {text} ends before it begins.")
    return int(ends[0]), int(ends[1])


def _number(text: str, flag: str) -> int:
    """A number of modules; 0 for all."""
    if text == "all":
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError(f"{flag} is '{text}'.", hint="Use a number of modules, or all.")
    return int(text)


@o.takes_settings
def show(
    file: Annotated[Path, Option("A plan.json or a scores.parquet.", argument=True)],
    module: Annotated[
        str | None,
        Option("All about one module: its full name or a unique suffix.", _FILTER_PANEL, short="m"),
    ] = None,
    match: Annotated[
        tuple[str, ...],
        Option("Only modules whose full name matches this glob (repeatable).", _FILTER_PANEL),
    ] = (),
    kind: Annotated[
        str | None, Option("Only this kind, such as down_proj or self_attn.q_proj.", _FILTER_PANEL)
    ] = None,
    layer: Annotated[
        tuple[int, int] | None,
        Option("Only this layer, or these: 3 or 0-5.", _FILTER_PANEL, parse=_layers),
    ] = None,
    mode: Annotated[
        Literal["full", "lora", "frozen"] | None,
        Option("Only modules that a plan trains in this mode.", _FILTER_PANEL),
    ] = None,
    status: Annotated[
        Literal["scored", "unreached", "skipped"] | None,
        Option("Only rows of a report with this status.", _FILTER_PANEL),
    ] = None,
    sort: Annotated[
        str | None,
        Option(
            "Column to order by: place, module, layer, kind, params, a score, or another column. "
            "Places and names rise, numbers fall.",
            o.OUTPUT_PANEL,
            default="place in a plan, the run's score in a report",
        ),
    ] = None,
    reverse: Annotated[bool, Option("Reverse the order.", o.OUTPUT_PANEL)] = False,
    columns: Annotated[
        str | None, Option("More columns of a report, such as tail,residual_ratio.", o.OUTPUT_PANEL)
    ] = None,
    top: Annotated[
        int | None,
        Option(
            "Modules to show in the table; 0 or all for every one.",
            o.OUTPUT_PANEL,
            default=f"{_SHOWN}; all with --json",
            parse=_number,
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
    from hlscore.artifacts.reading import read_artifact
    from hlscore.artifacts.report import Resamples
    from hlscore.artifacts.selection import (
        Filters,
        all_rows,
        find_column,
        find_module,
        ordered,
        plan_columns,
        report_columns,
    )
    from hlscore.scores.registry import SCORES
    from hlscore.views import show as view

    filters = Filters(match=match, kind=kind, layers=layer, mode=mode, status=status)
    if module is not None:
        tables = {"--sort": sort, "--reverse": reverse or None, "--columns": columns, "--top": top}
        _refuse(tables, "is for tables; --module shows one module")
    if as_json:
        _refuse({"--columns": columns}, "is for tables; --json prints every column")
    most = (None if as_json else _SHOWN) if top is None else top or None

    def shown_scores(run: RunInfo) -> tuple[str, ...]:
        """Scores whose resamples are shown."""
        if module is not None:
            return tuple(SCORES)
        return () if as_json else (sort or run.score, run.score)

    artifact = read_artifact(file, resamples=Resamples(scores=shown_scores))
    if isinstance(artifact, Plan):
        _refuse({"--status": status, "--columns": columns}, "is for a scores.parquet, not a plan")
        items = filters.pick(sorted(artifact.modules, key=lambda item: item.position))
        if module is not None:
            _refuse_skipped(artifact, module)
            item = find_module(items, module, filters)
            view.print_plan_module(artifact, item, file, as_json=as_json)
            return
        column = find_column(plan_columns(artifact), "place" if sort is None else sort, "--sort")
        items = ordered(items, column, reverse=reverse)
        if as_json:
            view.print_selected(artifact, items, column, file, most)
        else:
            view.print_plan(artifact, items, file, filters, most)
        return
    _refuse({"--mode": mode}, "is for a plan.json, not for scores")
    rows = filters.pick(all_rows(artifact))
    if module is not None:
        row = find_module(rows, module, filters)
        view.print_report_module(artifact, row, file, as_json=as_json)
        return
    known, names = report_columns(), [] if columns is None else columns.split(",")
    column = find_column(known, view.ordering_score(artifact) if sort is None else sort, "--sort")
    more = [find_column(known, name.strip(), "--columns") for name in names]
    rows = ordered(rows, column, reverse=reverse)
    if as_json:
        view.print_selected(artifact, rows, column, file, most)
    else:
        view.print_report(artifact, rows, [column, *more], file, filters, most)


def _refuse_skipped(plan: Plan, name: str) -> None:
    """Say why a weight is not in a plan, where the plan knows it."""
    if any(f".{item.module}".endswith(f".{name}") for item in plan.modules):
        return
    for item in plan.skipped:
        if f".{item.module}".endswith(f".{name}"):
            raise UsageError(
                f"The plan skips '{item.module}': {item.reason}.",
                hint="Skipped weights stay frozen; `hlscore modules MODEL --all` lists them.",
            )


def _refuse(options: Mapping[str, object], why: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise UsageError(f"{option} {why}.")
