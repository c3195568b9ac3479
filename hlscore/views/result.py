"""What `rank` and `plan` print: results first, then the next commands to run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from hlscore.artifacts.files import PLAN_FILE, ROLLOUTS_FILE, SCORES_FILE
from hlscore.artifacts.plan import Plan
from hlscore.planning.allocation import Allocation
from hlscore.records import ScoreReport
from hlscore.scores.registry import SCORES
from hlscore.settings import DEFAULT_RANK
from hlscore.views.choice import print_choice
from hlscore.views.headline import report_headline, run_notes
from hlscore.views.replan import replan
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
        report: Scores.
        allocation: Decisions.
        plan: The same in the public format.
        paths: Where each file is, by its name.
        top: Modules to show in the table.
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
    quoted = {name: shlex.quote(str(path)) for name, path in paths.items()}
    commands = [
        (
            f"hlscore plan {quoted[SCORES_FILE]} --budget 0.2 -o plan-20.json",
            "another budget, without the model",
        ),
        (
            f"hlscore export {quoted[PLAN_FILE]} --to trl -o hybrid",
            "for your trainer; hlscore export --list names the others",
        ),
    ]
    if SCORES[plan.score.name].leaves_over and plan.totals.full_modules and not plan.lora.ranks:
        commands.append(
            (
                f"hlscore plan {quoted[SCORES_FILE]} --budget {plan.totals.trained_params // 1000}k"
                f" --ranks {','.join(map(str, _ranks(report)))} -o plan-ranks.json",
                "at the same cost, a rank for each module",
            )
        )
    if report.probes.objective == "grpo" and plan.method == "score" and plan.totals.full_modules:
        commands.insert(
            0,
            (
                f"{replan(plan, paths[SCORES_FILE])} --baseline lora-matched -o lora.json",
                "LoRA with as many trained parameters: with rewards it was as good in our trials",
            ),
        )
    model = shlex.quote(report.model.model)
    if report.probes.objective == "sft" and plan.totals.full_modules:
        commands.append(
            (
                f"hlscore validate {model} --plan {quoted[PLAN_FILE]}"
                f"{_data_options(report.run.settings)}",
                "does it beat LoRA with as many parameters here? often it does not",
            )
        )
    if ROLLOUTS_FILE in quoted:
        other = "grpo" if report.probes.loss_type == "gspo" else "gspo"
        commands.append(
            (
                f"hlscore rank {model} --objective grpo --rollouts {quoted[ROLLOUTS_FILE]}"
                f"{_other_options(report.run.settings)} --loss-type {other} -o {other}",
                "another loss on the same completions, without sampling again",
            )
        )
    print_next(console, *commands)


def _ranks(report: ScoreReport) -> list[int]:
    """Ranks to choose from: those around the rank of a run that all its curves hold."""
    curves = [row.curve_ranks for row in report.candidates if row.curve_ranks]
    held = set(curves[0]).intersection(*curves) if curves else set()
    rank = report.run.rank
    return sorted(each for each in held if max(1, rank // 4) <= each <= 4 * rank)


def _data_options(settings: Mapping[str, Any]) -> str:
    """Options that name the data of a run."""
    data = settings["data"]
    given = [
        ("--data", data["data"], None),
        ("--data-config", data["config"], None),
        ("--split", data["split"], "train"),
        *(("--column", f"{role}={column}", None) for role, column in data["columns"].items()),
        ("--max-length", data["max_length"], None),
    ]
    only = " --assistant-only-loss" if settings["objective"]["assistant_only_loss"] else ""
    return _options(given) + only


def _other_options(settings: Mapping[str, Any]) -> str:
    """Options of a run that change its scores and that rollouts do not bring with them."""
    probed, plan, data = settings["objective"], settings["plan"], settings["data"]
    given = [
        ("--scale-rewards", probed["scale_rewards"], "group"),
        ("--max-new-tokens", probed["max_new_tokens"], 512),
        ("--max-length", data["max_length"], None),
        ("--rank", plan["rank"], DEFAULT_RANK),
        ("--seed", settings["seed"], 0),
    ]
    return _options(given) + (" --mask-truncated" if probed["mask_truncated"] else "")


def _options(given: Iterable[tuple[str, object, object]]) -> str:
    """Options of a command line, those left out whose value is the default; a space before each."""
    return "".join(
        f" {name} {shlex.quote(str(value))}" for name, value, default in given if value != default
    )


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
        report: Scores.
        allocation: Decisions.
        plan: The same in the public format.
        path: Where the plan file is.
        top: Modules to show in the table.
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
