"""`hlscore plan`: another plan from the same scores, without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.settings import Option, PlanSettings


@o.takes_settings
def plan(
    scores: Annotated[Path, Option("A scores.parquet written by `hlscore rank`.", argument=True)],
    settings: Annotated[
        o.Given,
        o.Options(
            PlanSettings,
            defaults={"score": "the one the report was ranked by", "rank": "the report's"},
            helps={"rank": "LoRA rank; one that the report's curves hold."},
        ),
    ],
    out: Annotated[
        Path | None, Option("Plan file to write.", short="o", default="plan.json beside the scores")
    ] = None,
    force: o.Force = False,
    top: o.Top = 15,
    as_json: o.Json = False,
) -> None:
    """Plan again from a report, with another budget, score or rank.

    **Examples**

    `hlscore plan hlscore-out/builtin-tiny/scores.parquet --budget 0.2 -o plan-20.json`

    `hlscore plan scores.parquet --budget 24GiB --base 4 --optimizer adamw8bit -o plan-24.json`

    `hlscore plan scores.parquet --budget 0.1p --ranks 4,8,16,32,64 --lock "*.down_proj=full"`

    `hlscore plan scores.parquet --budget 0.1 --baseline lora-matched -o baseline.json`
    """
    from hlscore.artifacts.files import PLAN_FILE, check_folder, write_files
    from hlscore.artifacts.plan_file import write_plan
    from hlscore.artifacts.report import read_report
    from hlscore.planning.make_plan import make_plan, run_settings
    from hlscore.planning.problem import check_plan_settings
    from hlscore.views.progress import status
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
