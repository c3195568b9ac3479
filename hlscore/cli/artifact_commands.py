"""What is made of scores, and what they mean: `hlscore plan`, `report`, `scores`, `schema`."""

from __future__ import annotations

import json
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated

import typer

from hlscore.artifacts.files import PLAN_FILE, check_folder, write_files
from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.settings import PlanSettings, option, refuse_both
from hlscore.views.progress import status

_SCORES = option(MISSING, "A scores.parquet written by `hlscore rank`.", argument=True)
_PAGE = "report.html"


@o.command()
def plan(
    settings: Annotated[
        o.Given,
        o.Options(
            PlanSettings,
            score={"default": "the one the report was ranked by"},
            rank={
                "help": "LoRA rank; one that the report's curves hold.",
                "default": "the report's",
            },
        ),
    ],
    scores: Path = _SCORES,
    out: Path | None = option(
        None, "Plan file to write.", short="o", default=f"{PLAN_FILE} beside the scores"
    ),
    force: bool = o.FORCE,
    top: int = o.TOP,
    as_json: bool = o.JSON,
) -> None:
    """Plan again from a report, with another budget, score or rank.

    **Examples**

    - `hlscore plan hlscore-out/builtin-tiny/scores.parquet --budget 0.2 -o plan-20.json`
    - `hlscore plan scores.parquet --budget 24GiB --base 4 --optimizer adamw8bit -o plan-24.json`
    - `hlscore plan scores.parquet --budget 0.1p --ranks 4,8,16,32,64 --lock "*.down_proj=full"`
    - `hlscore plan scores.parquet --budget 0.1 --baseline lora-matched -o baseline.json`
    """
    from hlscore.artifacts.plan_file import write_plan
    from hlscore.artifacts.report import read_report
    from hlscore.planning.make_plan import make_plan, run_settings
    from hlscore.planning.problem import check_plan_settings
    from hlscore.views.result import print_result

    report = read_report(scores)
    asked = run_settings(report, settings)
    check_plan_settings(asked)
    target = out or scores.parent / PLAN_FILE
    if target.resolve() == scores.resolve():
        raise UsageError(
            f"--out '{target}' is the score report itself.", hint="Give another file for the plan."
        )
    if target.suffix.lower() != ".json" and not target.is_dir():
        raise UsageError(
            f"--out '{target}': a plan is JSON.",
            hint=f"Use a name such as {target.with_suffix('.json').name}; "
            "`hlscore export` writes other formats.",
        )
    check_folder(target.parent, (target.name,), force=force)
    with status("planning"):
        made = make_plan(report, asked)
    write_files(target.parent, {target.name: lambda path: write_plan(made, path)})
    print_result(None, made, {PLAN_FILE: target}, top=top, as_json=as_json)


@o.command()
def report(
    settings: Annotated[
        o.Given,
        o.Options(
            PlanSettings,
            only=("budget",),
            budget={"help": "Budget of the plan, if no plan is given."},
        ),
    ],
    scores: Path = _SCORES,
    plan: Path | None = option(
        None, "A plan.json for the same model; without one, the report makes a plan.", argument=True
    ),
    out: Path | None = option(
        None,
        "File to write: .html, .png, .svg or .md.",
        short="o",
        default=f"{_PAGE} beside the scores",
    ),
    force: bool = o.FORCE,
    as_json: bool = o.JSON,
) -> None:
    """Write a shareable report of SCORES and a PLAN.

    It is one file that loads nothing: charts, tail curves on click, a table to sort.

    **Examples**

    - `hlscore report scores.parquet plan.json -o report.html`
    - `hlscore report scores.parquet --budget 0.2 -o report.md`
    """
    from hlscore.agreement.sides import named
    from hlscore.artifacts.plan_file import read_plan
    from hlscore.artifacts.report import read_report
    from hlscore.pages.content import join
    from hlscore.pages.page import check_format, render
    from hlscore.planning.budget import parse_budget
    from hlscore.planning.make_plan import make_plan, run_settings
    from hlscore.views.result import print_written

    target = out or scores.parent / _PAGE
    suffix = check_format(target)
    if "budget" in settings:
        refuse_both("--budget", "a plan", plan is not None)
        parse_budget(settings["budget"])
    for path in (scores, plan):
        if path is not None and path.resolve() == target.resolve():
            raise UsageError(
                f"--out '{target}' is an input of the report.", hint="Give another file."
            )
    check_folder(target.parent, (target.name,), force=force)
    with status("writing the report"):
        made = None if plan is None else read_plan(plan)
        found = read_report(scores)
        if made is None:
            with named(scores):
                made = make_plan(found, run_settings(found, settings))
        page = render(join(found, made, planned_here=plan is None), suffix)
    write_files(target.parent, {target.name: lambda path: path.write_bytes(page)})
    print_written(made, target, scores, plan, as_json=as_json)


@o.command()
def scores(as_json: bool = o.JSON) -> None:
    """List the scores with formula, unit and source.

    **Example**

    - `hlscore scores`
    """
    from hlscore.scores.registry import SCORES
    from hlscore.views.terminal import Terminal, picked, plain_table, print_json

    console, columns = Terminal(), ("formula", "unit", "needs", "source")
    found = SCORES.values()
    if as_json:
        print_json([picked(score, "name", *columns, "caveat") for score in found])
        return
    table = plain_table("score", *columns, texts=columns)
    for score in found:
        table.add_row(score.name, *picked(score, *columns).values())
    console.folded(table)
    console.print()
    for score in found:
        if score.caveat:
            console.dim(score.caveat)
    console.dim("No score is proven to predict the gain from training.")


def schema() -> None:
    """Print the JSON Schema of `plan.json`.

    **Example**

    - `hlscore schema > plan.schema.json`
    """
    from hlscore.artifacts.plan import plan_schema

    typer.echo(json.dumps(plan_schema(), indent=2))
