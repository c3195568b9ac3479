"""`hlscore report`: scores and a plan as a page, an image or Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.settings import Option, PlanSettings

_DEFAULT_NAME = "report.html"


@o.takes_settings
def report(
    scores: Annotated[Path, Option("A scores.parquet written by `hlscore rank`.", argument=True)],
    settings: Annotated[
        o.Given,
        o.Options(
            PlanSettings,
            only=("budget",),
            helps={"budget": "Budget of the plan, if no plan is given."},
        ),
    ],
    plan: Annotated[
        Path | None,
        Option(
            "A plan.json for the same model; without one, the report makes a plan.", argument=True
        ),
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            "File to write: .html, .png, .svg or .md.",
            short="o",
            default=f"{_DEFAULT_NAME} beside the scores",
        ),
    ] = None,
    force: o.Force = False,
    as_json: o.Json = False,
) -> None:
    """Write a shareable report of SCORES and a PLAN.

    It is one file that loads nothing: charts, tail curves on click, a table to sort.

    **Examples**

    `hlscore report scores.parquet plan.json -o report.html`

    `hlscore report scores.parquet --budget 0.2 -o report.md`
    """
    from hlscore.agreement.sides import named
    from hlscore.artifacts.files import check_folder, write_files
    from hlscore.artifacts.plan_file import read_plan
    from hlscore.artifacts.report import read_report
    from hlscore.pages.content import join
    from hlscore.pages.page import check_format, render
    from hlscore.planning.budget import parse_budget
    from hlscore.planning.make_plan import make_plan, run_settings
    from hlscore.views.progress import status
    from hlscore.views.result import print_written

    target = out or scores.parent / _DEFAULT_NAME
    suffix = check_format(target)
    if "budget" in settings:
        if plan is not None:
            raise UsageError(
                "--budget and a plan are mutually exclusive.", hint="Remove one of them."
            )
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
