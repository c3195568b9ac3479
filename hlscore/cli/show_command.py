"""`hlscore show`: a plan or a score report in the terminal."""

# ruff: noqa: B008 - the defaults are options

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated

from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.settings import FILTER_PANEL, Filters, option

_SHOWN = 15


def _number(text: str, flag: str) -> int:
    """A number of modules; 0 for all."""
    if text == "all":
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError(f"{flag} is '{text}'.", hint="Use a number of modules, or all.")
    return int(text)


@o.takes_settings
def show(
    filters: Annotated[Filters, o.Options()],
    file: Path = option(MISSING, "A plan.json or a scores.parquet.", argument=True),
    module: str | None = option(
        None, "Show one module: its full name or a unique suffix.", FILTER_PANEL, short="m"
    ),
    sort: str | None = option(
        None,
        "Column to order by: place, module, layer, kind, params, a score, or another column. "
        "Places and names rise, numbers fall.",
        default="place in a plan, the run's score in a report",
    ),
    reverse: bool = option(False, "Reverse the order."),
    columns: str | None = option(None, "More columns of a report, such as tail,residual_ratio."),
    top: int | None = option(
        None,
        "Modules to show in the table; 0 or all for every one.",
        default=f"{_SHOWN}; all with --json",
        parse=_number,
    ),
    as_json: bool = o.JSON,
) -> None:
    """Show a plan or a score report: table and heat map, or one module.

    **Examples**

    `hlscore show hlscore-out/builtin-tiny/plan.json --mode full`

    `hlscore show scores.parquet --sort tail --columns residual_ratio,stable_rank --layer 0-3`

    `hlscore show scores.parquet --module layers.0.mlp.down_proj`
    """
    from hlscore.artifacts.plan import Plan
    from hlscore.artifacts.plan_file import read_artifact
    from hlscore.artifacts.selection import columns_of, find_column, find_module, matching, ordered
    from hlscore.views import show as view

    if module is not None:
        tables = {"--sort": sort, "--reverse": reverse or None, "--columns": columns, "--top": top}
        _refuse(tables, "is for tables; --module shows one module")
    if as_json:
        _refuse({"--columns": columns}, "is for tables; --json prints every column")
    artifact = read_artifact(file)
    known = columns_of(artifact)
    most = (None if as_json else _SHOWN) if top is None else top or None
    if isinstance(artifact, Plan):
        _refuse(
            {"--status": filters.status, "--columns": columns},
            "is for a scores.parquet, not a plan",
        )
        items = matching(sorted(artifact.modules, key=lambda item: item.position), filters)
        if module is not None:
            item = find_module(items, module, filters, artifact.skipped)
            view.print_plan_module(artifact, item, file, as_json=as_json)
            return
        column = find_column(known, "place" if sort is None else sort, "--sort")
        items = ordered(items, column, reverse=reverse)
        if as_json:
            view.print_selected(artifact, items, column, file, most)
        else:
            view.print_plan(artifact, items, file, filters, most)
        return
    _refuse({"--mode": filters.mode}, "is for a plan.json, not for scores")
    rows = matching(ordered(artifact.rows, known["place"], reverse=False), filters)
    if module is not None:
        row = find_module(rows, module, filters)
        view.print_report_module(artifact, row, file, as_json=as_json)
        return
    names = [] if columns is None else columns.split(",")
    column = find_column(known, view.ordering_score(artifact) if sort is None else sort, "--sort")
    more = [find_column(known, name.strip(), "--columns") for name in names]
    rows = ordered(rows, column, reverse=reverse)
    if as_json:
        view.print_selected(artifact, rows, column, file, most)
    else:
        view.print_report(artifact, rows, [column, *more], file, filters, most)


def _refuse(options: Mapping[str, object], why: str) -> None:
    for flag, value in options.items():
        if value is not None:
            raise UsageError(f"{flag} {why}.")
