"""How results differ: `hlscore compare` and `hlscore diff`."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path
from typing import Annotated

import typer

from hlscore.cli import options as o
from hlscore.errors import EXIT_CHECK_FAILED, UsageError
from hlscore.settings import (
    LARGEST_RANK,
    PlanSettings,
    option,
    parse_limit,
    parse_ranks,
    refuse_both,
)
from hlscore.views.progress import status

_OWN = "each run's own"
_FILE = "A plan.json or a scores.parquet."
_PLAN_BESIDE = "that of the plan beside them, else"


def _ranks(text: str, flag: str) -> tuple[int, ...]:
    found = parse_ranks(text, flag)
    if not all(1 <= rank <= LARGEST_RANK for rank in found):
        raise UsageError(f"{flag} is {text}.", hint=f"Use 1 to {LARGEST_RANK}.")
    if len(found) < 2:
        raise UsageError(f"{flag} {text} is one rank.", hint="Give two or more, such as 4,16.")
    return found


@o.command("What is compared")
def compare(
    scores: tuple[Path, ...] = option(
        MISSING, "One scores.parquet, or several to compare runs.", argument=True
    ),
    score: str | None = option(
        None, "Score of the runs, or of --ranks; `hlscore scores` lists them.", default=_OWN
    ),
    rank: int | None = option(
        None,
        "LoRA rank; one at which the report has scores.",
        short="r",
        low=1,
        high=LARGEST_RANK,
        default=_OWN,
    ),
    ranks: tuple[int, ...] = option(
        (), "Compare these LoRA ranks of one run, such as 4,16,64.", parse=_ranks
    ),
    within_kinds: bool = option(
        False, "Also compare within kinds of modules: kind and size explain much of an order."
    ),
    top_k: str = option(
        "10%", "How many modules count as the highest: a share such as 10%, or a number."
    ),
    as_json: bool = o.JSON,
) -> None:
    """Compare all scores of one run, one score at several LoRA ranks, or several runs.

    The last column shows how well a ranking agrees with itself: two resamples of its own probes.

    **Examples**

    - `hlscore compare hlscore-out/builtin-tiny/scores.parquet`
    - `hlscore compare seed-0/scores.parquet seed-1/scores.parquet --score tail --top-k 8`
    - `hlscore compare scores.parquet --ranks 4,16,64 --within-kinds`
    """
    from hlscore.agreement import comparison
    from hlscore.agreement.sides import read_sides
    from hlscore.scores.registry import find_score
    from hlscore.views.compare import print_comparison

    top = parse_limit(top_k, "--top-k")
    if not (top.count or top.share):
        raise UsageError(f"--top-k is '{top_k}'.", hint="Use a number or a share above 0.")
    if score is not None:
        find_score(score)
    if len(scores) > 1 and ranks:
        raise UsageError("--ranks compares LoRA ranks of one run.", hint="Give one score file.")
    refuse_both("--rank", "--ranks", bool(ranks) and rank is not None)
    if len(scores) == 1 and not ranks and score is not None:
        raise UsageError(
            "All scores of one run are compared; --score selects one.",
            hint="Give several score files, or --ranks 4,16,64.",
        )
    with status("comparing"):
        sides = read_sides(scores)
        found = comparison.compare(
            sides, score=score, rank=rank, ranks=ranks, top=top, within_kinds=within_kinds
        )
    print_comparison(found, as_json=as_json)


@o.command()
def diff(
    settings: Annotated[
        o.Given,
        o.Options(
            PlanSettings,
            only=("budget", "score", "rank"),
            budget={
                "help": "Budget that scores are planned with, as in `hlscore plan`.",
                "default": f"{_PLAN_BESIDE} 0.1",
            },
            score={"default": f"{_PLAN_BESIDE} the report's"},
            rank={"help": "LoRA rank.", "default": f"{_PLAN_BESIDE} the report's"},
        ),
    ],
    a: Path = option(MISSING, _FILE, argument=True),
    b: Path = option(MISSING, _FILE, argument=True),
    top: int = o.TOP,
    exit_code: bool = option(False, "Exit with 1 if a module is trained differently."),
    as_json: bool = o.JSON,
) -> None:
    """Compare two plans, two score files, or one of each: what moved, and by more than noise?

    Scores are planned first, by the rule of `hlscore plan`.

    **Examples**

    - `hlscore diff old/plan.json new/plan.json`
    - `hlscore diff seed-0/scores.parquet seed-1/scores.parquet --budget 0.2`
    - `hlscore diff plan.json scores.parquet --exit-code --json`
    """
    from hlscore.agreement.difference import difference
    from hlscore.agreement.sides import read_sides
    from hlscore.planning.budget import parse_budget
    from hlscore.scores.registry import find_score
    from hlscore.views.diff import print_difference

    if "budget" in settings:
        parse_budget(settings["budget"])
    if "score" in settings:
        find_score(settings["score"])
    with status("comparing"):
        found = difference(read_sides((a, b)), settings)
    print_difference(found, top=top, as_json=as_json)
    if exit_code and found.moves:
        raise typer.Exit(EXIT_CHECK_FAILED)
