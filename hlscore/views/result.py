"""What `rank` and `plan` print: results first, then the next commands to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.text import Text

from hlscore.artifacts.files import PLAN_FILE, ROLLOUTS_FILE, SCORES_FILE
from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.records import ScoreReport
from hlscore.scores.registry import SCORES
from hlscore.views.commands import (
    plan_command,
    rank_rollouts_command,
    settings_in,
    validate_command,
)
from hlscore.views.drawings import print_heat_map
from hlscore.views.module_table import ModuleTable
from hlscore.views.summary import (
    chosen_in,
    report_headline,
    run_notes,
    shape,
    summary,
    training,
)
from hlscore.views.terminal import Terminal, command, print_json
from hlscore.wording import measure


def print_result(
    report: ScoreReport,
    plan: Plan,
    paths: Mapping[str, Path],
    *,
    top: int,
    as_json: bool = False,
    console: Terminal | None = None,
) -> None:
    """Print what a run found, the files it wrote, by name, and what to do next."""
    if as_json:
        keys = {SCORES_FILE: "scores", PLAN_FILE: "plan_file", ROLLOUTS_FILE: "rollouts"}
        files: dict[str, object] = {keys[name]: path for name, path in paths.items()}
        print_json(files | {"plan": plan.model_dump(mode="json")})
        return
    console = console or Terminal()
    console.print(report_headline(report))
    print_plan_modules(console, plan, plan.modules, top=top)
    console.notes(dict.fromkeys((*report.probes.notes, *run_notes(report), *plan.notes)))
    console.print()
    width = 2 + max(len(Path(name).stem) for name in paths)
    console.labelled([(Path(name).stem, str(path)) for name, path in paths.items()], width)
    console.next_steps(*_next_commands(report, plan, paths))


def _next_commands(
    report: ScoreReport, plan: Plan, paths: Mapping[str, Path]
) -> list[tuple[str, str]]:
    scores, plan_file = paths[SCORES_FILE], paths[PLAN_FILE]
    objective, any_full = report.probes.objective, bool(plan.totals.full_modules)
    commands = []
    if objective == "grpo" and plan.method == "score" and any_full:
        matched = plan_command(report, scores, "--baseline", "lora-matched", "-o", "lora.json")
        why = "LoRA with as many trained parameters: with rewards it was as good in our trials"
        commands.append((matched, why))
    other_budget = ("--budget", "0.2", "-o", "plan-20.json")
    commands += [
        (
            plan_command(report, scores, *other_budget, without=("budget",)),
            "another budget, without the model",
        ),
        (
            command("export", plan_file, "--to", "trl", "-o", "hybrid"),
            "for your trainer; hlscore export --list names the others",
        ),
    ]
    ranks = _ranks(report)
    if SCORES[plan.score.name].leaves_over and any_full and ranks and not plan.lora.ranks:
        budget = f"{plan.totals.trained_params // 1000}k"
        options = ("--budget", budget, "--ranks", ",".join(map(str, ranks)))
        ranked = plan_command(
            report, scores, *options, "-o", "plan-ranks.json", without=("budget",)
        )
        commands.append((ranked, "at the same cost, a rank for each module"))
    if objective == "sft" and any_full:
        why = "does it beat LoRA with as many parameters here? often it does not"
        commands.append((validate_command(report, plan_file), why))
    if ROLLOUTS_FILE in paths:
        other = "grpo" if report.probes.loss_type == "gspo" else "gspo"
        again = rank_rollouts_command(
            report, paths[ROLLOUTS_FILE], "--loss-type", other, "-o", other
        )
        commands.append((again, "another loss on the same completions, without sampling again"))
    return commands


def _ranks(report: ScoreReport) -> list[int]:
    """Ranks to choose from: those around the rank of a run that all its curves hold.

    Empty where the run's alpha gives them no whole alpha of their own.
    """
    curves = [row.curve_ranks for row in report.candidates if row.curve_ranks]
    held = set(curves[0]).intersection(*curves) if curves else set()
    rank = report.run.rank
    alpha = settings_in(report.run.settings, "plan").get("alpha") or 2 * rank
    found = [each for each in held if max(1, rank // 4) <= each <= 4 * rank]
    return sorted(found) if all(alpha * each % rank == 0 for each in found) else []


def print_replanned(plan: Plan, path: Path, *, top: int, as_json: bool) -> None:
    """Print a plan made from stored scores."""
    if as_json:
        print_json({"plan_file": path, "plan": plan.model_dump(mode="json")})
        return
    console = Terminal()
    console.print(Text(f"{plan.model.name} · {plan.model.architecture}", style="bold"))
    print_plan_modules(console, plan, plan.modules, top=top)
    console.notes(plan.notes)
    console.print()
    console.labelled([("plan", str(path))])


def print_plan_modules(
    console: Terminal, plan: Plan, modules: Sequence[PlanModule], *, top: int | None
) -> None:
    """Print up to `top` modules of a plan as a table and a map, and a summary of the plan."""
    console.print()
    table = ModuleTable((plan.score.name, "± se", "chosen in", "out x in"), ("train",))
    for item in modules[:top]:
        table.add_row(
            str(item.position),
            item.module,
            measure(item.score),
            measure(item.stderr),
            chosen_in(item.selection_probability),
            shape(item),
            training(item.mode, item.rank),
            style="" if item.mode == "full" else "dim",
        )
    table.print(console, hidden=len(modules) - len(modules[:top]))
    print_heat_map(
        console, modules, plan.score.name, lambda item: item.score, lambda item: item.mode == "full"
    )
    console.print()
    console.labelled(summary(plan))
