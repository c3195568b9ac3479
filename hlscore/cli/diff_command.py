"""`hlscore diff`: what two plans or score files decide differently."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hlscore.cli import options as o
from hlscore.errors import EXIT_CHECK_FAILED
from hlscore.settings import Option, PlanSettings

_FILE = "A plan.json or a scores.parquet."


@o.takes_settings
def diff(
    a: Annotated[Path, Option(_FILE, argument=True)],
    b: Annotated[Path, Option(_FILE, argument=True)],
    settings: Annotated[
        o.Given,
        o.Options(
            PlanSettings,
            only=("budget", "score", "rank"),
            defaults={
                "budget": "that of the plan beside them, else 0.1",
                "score": "that of the plan beside them, else the report's",
                "rank": "that of the plan beside them, else the report's",
            },
            helps={
                "budget": "Budget that scores are planned with, as in `hlscore plan`.",
                "rank": "LoRA rank.",
            },
        ),
    ],
    top: o.Top = 15,
    exit_code: Annotated[bool, Option("Exit with 1 if a module is trained differently.")] = False,
    as_json: o.Json = False,
) -> None:
    """Compare two plans, two score files, or one of each: what moved, and by more than noise?

    Scores are planned first, by the rule of `hlscore plan`.

    **Examples**

    `hlscore diff old/plan.json new/plan.json`

    `hlscore diff seed-0/scores.parquet seed-1/scores.parquet --budget 0.2`

    `hlscore diff plan.json scores.parquet --exit-code --json`
    """
    from hlscore.agreement.difference import difference
    from hlscore.agreement.sides import read_sides
    from hlscore.planning.budget import parse_budget
    from hlscore.scores.registry import find_score
    from hlscore.views.diff import print_difference
    from hlscore.views.progress import status

    if "budget" in settings:
        parse_budget(settings["budget"])
    if "score" in settings:
        find_score(settings["score"])
    with status("comparing"):
        found = difference(read_sides((a, b)), settings)
    print_difference(found, top=top, as_json=as_json)
    if exit_code and found.moves:
        raise typer.Exit(EXIT_CHECK_FAILED)
