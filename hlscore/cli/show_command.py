"""`hlscore show`: a plan or a score report in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any

from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.settings import Filters, option

_SHOWN = 15


@o.command()
def show(
    filters: Annotated[Filters, o.Options()],
    file: Path = option(MISSING, "A plan.json or a scores.parquet.", argument=True),
    module: str | None = option(
        None, "Show one module: its full name or a unique suffix.", Filters.panel, short="m"
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
        o.TOP_HELP,
        default=f"{_SHOWN}; all with --json",
        metavar="<int>",
        parse=o.modules_to_show,
    ),
    as_json: bool = o.JSON,
) -> None:
    """Show a plan or a score report: table and heat map, or one module.

    **Examples**

    - `hlscore show hlscore-out/builtin-tiny/plan.json --mode full`
    - `hlscore show scores.parquet --sort tail --columns residual_ratio,stable_rank --layer 0-3`
    - `hlscore show scores.parquet --module layers.0.mlp.down_proj`
    """
    from hlscore.artifacts.plan import Plan
    from hlscore.artifacts.plan_file import read_artifact
    from hlscore.artifacts.selection import columns_of, find_column, find_module, matching, ordered
    from hlscore.checks.run import contradiction
    from hlscore.views import show as view
    from hlscore.views.progress import warn

    if module is not None:
        tables = {"--sort": sort, "--reverse": reverse or None, "--columns": columns, "--top": top}
        _refuse(tables, "is for tables; --module shows one module.", "Remove one of them.")
    if as_json:
        _refuse({"--columns": columns}, "is for tables; --json prints every column.", "Remove it.")
    artifact = read_artifact(file)
    every: Sequence[Any]
    if isinstance(artifact, Plan):
        of_scores = "is for a scores.parquet, not a plan."
        _refuse({"--status": filters.status}, of_scores, "--mode filters the modules of a plan.")
        _refuse({"--columns": columns}, of_scores, "--json prints every field of its modules.")
        warn(contradiction(file, artifact))
        every = artifact.modules
    else:
        of_plans = "is for a plan.json, not for scores."
        _refuse({"--mode": filters.mode}, of_plans, "--status filters the rows of scores.")
        every = artifact.rows
    known = columns_of(artifact)
    items = matching(ordered(every, known["place"], reverse=False), filters)
    if module is not None:
        item = find_module(items, module, filters, getattr(artifact, "skipped", ()))
        view.print_module(artifact, item, file, as_json=as_json)
        return
    if sort is None:
        sort = "place" if isinstance(artifact, Plan) else view.ordering_score(artifact)
    names = [] if columns is None else columns.split(",")
    chosen = [find_column(known, sort, "--sort")]
    chosen += [find_column(known, name.strip(), "--columns") for name in names]
    items = ordered(items, chosen[0], reverse=reverse)
    most = top if top is not None else sys.maxsize if as_json else _SHOWN
    view.print_selected(artifact, items, chosen, file, filters, most, as_json=as_json)


def _refuse(options: Mapping[str, object], why: str, hint: str) -> None:
    for flag, value in options.items():
        if value is not None:
            raise UsageError(f"{flag} {why}", hint=hint)
