"""What `rank` and `plan` print: results first, then the next commands to run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hlscore.artifacts.files import PLAN_FILE, ROLLOUTS_FILE, SCORES_FILE
from hlscore.artifacts.plan import Plan
from hlscore.planning.allocation import Allocation
from hlscore.records import ScoreReport
from hlscore.scores.registry import SCORES
from hlscore.views.choice import print_choice
from hlscore.views.commands import (
    plan_again,
    rank_rollouts,
    settings_in,
    validate_plan,
)
from hlscore.views.headline import report_headline, run_notes
from hlscore.views.terminal import print_next, print_notes, terminal


def print_result(
    report: ScoreReport,
    allocation: Allocation,
    plan: Plan,
    paths: Mapping[str, Path],
    *,
    top: int,
    console: Console | None = None,
) -> None:
    """Print what a run found, where it is, and what to do next.

    Args:
        paths: Where each file is, by its name.
        console: Where to print; standard output by default.
    """
    console = console or terminal()
    console.print(report_headline(report), soft_wrap=True)
    _print_choice(console, plan, allocation, top)
    print_notes(console, (*report.probes.notes, *run_notes(report), *allocation.notes))
    console.print()
    width = 2 + max(len(Path(name).stem) for name in paths)
    for name, path in paths.items():
        label = f"{Path(name).stem:<{width}}"
        console.print(Text.assemble((label, "bold"), str(path)), soft_wrap=True)
    scores = paths[SCORES_FILE]
    plan_file = shlex.quote(str(paths[PLAN_FILE]))
    commands = [
        (
            plan_again(report, scores, *("--budget", "0.2", "-o", "plan-20.json"),
                       without=("budget",)),
            "another budget, without the model",
        ),
        (
            f"hlscore export {plan_file} --to trl -o hybrid",
            "for your trainer; hlscore export --list names the others",
        ),
    ]  # fmt: skip
    ranks = _ranks(report)
    varied = SCORES[plan.score.name].leaves_over and plan.totals.full_modules and ranks
    if varied and not plan.lora.ranks:
        budget = f"{plan.totals.trained_params // 1000}k"
        options = ("--budget", budget, "--ranks", ",".join(map(str, ranks)))
        commands.append(
            (
                plan_again(report, scores, *options, "-o", "plan-ranks.json", without=("budget",)),
                "at the same cost, a rank for each module",
            )
        )
    if report.probes.objective == "grpo" and plan.method == "score" and plan.totals.full_modules:
        commands.insert(
            0,
            (
                plan_again(
                    report, paths[SCORES_FILE], "--baseline", "lora-matched", "-o", "lora.json"
                ),
                "LoRA with as many trained parameters: with rewards it was as good in our trials",
            ),
        )
    if report.probes.objective == "sft" and plan.totals.full_modules:
        commands.append(
            (
                validate_plan(report, paths[PLAN_FILE]),
                "does it beat LoRA with as many parameters here? often it does not",
            )
        )
    if ROLLOUTS_FILE in paths:
        other = "grpo" if report.probes.loss_type == "gspo" else "gspo"
        commands.append(
            (
                rank_rollouts(report, paths[ROLLOUTS_FILE], "--loss-type", other, "-o", other),
                "another loss on the same completions, without sampling again",
            )
        )
    print_next(console, *commands)


def _ranks(report: ScoreReport) -> list[int]:
    """Ranks to choose from: those around the rank of a run that all its curves hold.

    Empty where the run's alpha gives them no whole alpha of their own.
    """
    curves = [row.curve_ranks for row in report.candidates if row.curve_ranks]
    held = set(curves[0]).intersection(*curves) if curves else set()
    rank = report.run.rank
    alpha = settings_in(report, "plan").get("alpha") or 2 * rank
    found = [each for each in held if max(1, rank // 4) <= each <= 4 * rank]
    return sorted(found) if all(alpha * each % rank == 0 for each in found) else []


def print_replanned(
    report: ScoreReport,
    allocation: Allocation,
    plan: Plan,
    path: Path,
    *,
    top: int,
    console: Console | None = None,
) -> None:
    """Print a plan made from stored scores.

    Args:
        console: Where to print; standard output by default.
    """
    console = console or terminal()
    console.print(Text(f"{report.model.model} · {report.model.architecture}", style="bold"))
    _print_choice(console, plan, allocation, top)
    print_notes(console, allocation.notes)
    console.print()
    console.print(Text.assemble(("plan    ", "bold"), str(path)), soft_wrap=True)


def print_rank_json(plan: Plan, paths: Mapping[str, Path]) -> None:
    """Print the paths and the plan as one JSON object."""
    keys = {SCORES_FILE: "scores", PLAN_FILE: "plan_file", ROLLOUTS_FILE: "rollouts"}
    print(json.dumps({keys[name]: str(path) for name, path in paths.items()} | _result(plan)))


def print_plan_json(plan: Plan, path: Path) -> None:
    """Print the path and the plan as one JSON object."""
    print(json.dumps({"plan_file": str(path)} | _result(plan)))


def _result(plan: Plan) -> dict[str, object]:
    return {"plan": plan.model_dump(mode="json")}


def _print_choice(console: Console, plan: Plan, allocation: Allocation, top: int) -> None:
    stderrs = {item.row.module: item.stderr for item in allocation.decisions}
    print_choice(console, plan, plan.modules, top=top, stderrs=stderrs)
