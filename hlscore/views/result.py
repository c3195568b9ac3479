"""What `rank`, `plan` and `report` print: results first, then the next commands to run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text

from hlscore.artifacts.files import PLAN_FILE, ROLLOUTS_FILE, SCORES_FILE
from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.records import ScoreReport
from hlscore.scores.registry import SCORES
from hlscore.settings import NOT_VALIDATED, PlanSettings, RankSettings, ValidateSettings, arguments
from hlscore.views.drawings import print_heat_map
from hlscore.views.summary import chosen_in, report_headline, run_notes, summary, training
from hlscore.views.terminal import ModuleLine, Terminal, command, picked, print_json
from hlscore.wording import count, measure, memory


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
        files = {keys[name]: path for name, path in paths.items()}
        print_json({**files, "plan": plan.model_dump(mode="json")})
        return
    console = console or Terminal()
    console.print(report_headline(report))
    print_plan_modules(console, plan, plan.modules, top=top)
    console.notes(dict.fromkeys((*run_notes(report), *plan.notes)))
    console.print()
    width = 2 + max(len(Path(name).stem) for name in paths)
    console.labelled([(Path(name).stem, str(path)) for name, path in paths.items()], width)

    scores, plan_file = paths[SCORES_FILE], paths[PLAN_FILE]
    run: Any = report.run.settings
    objective, any_full = report.probes.objective, bool(plan.totals.full_modules)
    commands = []
    if objective == "grpo" and plan.method == "score" and any_full:
        matched = plan_command(report, scores, "--baseline", "lora-matched", "-o", "lora.json")
        why = "LoRA with as many trained parameters: with rewards it was as good in our trials"
        commands.append((matched, why))
    options = ("--budget", "0.2", "-o", "plan-20.json")
    other_budget = plan_command(report, scores, *options, without=("budget",))
    commands.append((other_budget, "another budget, without the model"))
    export = command("export", plan_file, "--to", "trl", "-o", "hybrid")
    commands.append((export, "for your trainer; hlscore export --list names the others"))
    # Ranks chosen by updates did no better than one rank for all (benchmarks/evidence).
    by_gradients = SCORES[plan.score.name].leaves_over and not report.run.scores_updates
    if by_gradients and any_full and not plan.lora.ranks:
        # Ranks around that of the run which all its curves hold.
        rank = report.run.rank
        curves = [row.curve_ranks for row in report.candidates if row.curve_ranks]
        held = set(curves[0]).intersection(*curves) if curves else ()
        ranks = sorted(each for each in held if max(1, rank // 4) <= each <= 4 * rank)
        alpha = run.get("plan", {}).get("alpha") or 2 * rank
        if ranks and all(alpha * each % rank == 0 for each in ranks):  # alphas are whole numbers
            cost = ("--budget", f"{plan.totals.trained_params // 1000}k")
            each = ("--ranks", ",".join(map(str, ranks)), "-o", "plan-ranks.json")
            ranked = plan_command(report, scores, *cost, *each, without=("budget", "gated_pairs"))
            commands.append((ranked, "at the same cost, a rank for each module"))
    if objective == "sft" and any_full:
        of_run = {part: run.get(part) for part in ("model", "data")}
        of_run["assistant_only_loss"] = run.get("objective", {}).get("assistant_only_loss", False)
        unknown = ("model", "samples", *NOT_VALIDATED)
        words = arguments(ValidateSettings, of_run, without=unknown)
        trial = command("validate", report.model.model, "--plan", plan_file, *words)
        why = "does it beat LoRA with as many parameters here? often it does not"
        commands.append((trial, why))
    if ROLLOUTS_FILE in paths:
        other = "grpo" if report.probes.loss_type == "gspo" else "gspo"
        given = ("--objective", "grpo", "--rollouts", paths[ROLLOUTS_FILE])
        # The file has the prompts, how they were completed, and the rewards.
        known = (
            "model", "data", "config", "split", "columns", "samples", "objective", "loss_type",
            "beta", "rollouts", "rewards", "reward_weights", "reward_timeout", "generations",
            "temperature", "top_p", "top_k", "stop", "generate_batch",
        )  # fmt: skip
        words = arguments(RankSettings, run, without=known)
        words += ["--loss-type", other, "-o", other]
        again = command("rank", report.model.model, *given, *words)
        commands.append((again, "another loss on the same completions, without sampling again"))
    console.next_steps(*commands)


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
    score, lines = plan.score.name, []
    for item in modules[:top]:
        cells = (
            str(item.position), item.module, measure(item.score), measure(item.stderr),
            chosen_in(item.selection_probability), item.size, training(item.mode, item.rank),
        )  # fmt: skip
        lines.append(ModuleLine(cells, "" if item.mode == "full" else "dim"))
    console.print()
    headings = (score, "± se", "chosen in", "out x in", "train")
    console.modules(headings, lines, of=len(modules), texts=1)
    full = {item.module for item in modules if item.mode == "full"}
    print_heat_map(console, modules, score, {item.module: item.score for item in modules}, full)
    console.print()
    console.labelled(summary(plan))


def print_written(
    plan: Plan, path: Path, scores: Path, plan_file: Path | None, *, as_json: bool
) -> None:
    """Print where `report` wrote a page or picture, how large it is, and what to do next."""
    console, totals, suffix = Terminal(), plan.totals, path.suffix.lower()
    if as_json:
        print_json({
            "report": path, "format": suffix.removeprefix("."), "bytes": path.stat().st_size,
            "plan_file": plan_file, "budget": plan.budget.asked,
            **picked(totals, "full_modules", "candidate_modules"),
        })  # fmt: skip
        return
    made = f", by a plan of budget {plan.budget.asked} made for the report"
    full = f"{totals.full_modules:,} of {count(totals.candidate_modules, 'module')} in full"
    console.print(Text.assemble((plan.model.name, "bold"), f"  {full}{'' if plan_file else made}"))
    console.labelled([("report", f"{path}  {memory(path.stat().st_size)}")])
    if suffix == ".md":
        comment = f"gh pr comment --body-file {shlex.quote(str(path))}"
        console.next_steps((comment, "post it on a pull request"))
        return
    browser = shlex.join(["python", "-m", "webbrowser", path.resolve().as_uri()])
    inputs = [scores, *([plan_file] if plan_file else [])]
    markdown = command("report", *inputs, "-o", path.with_suffix(".md"))
    console.next_steps((browser, "open it"), (markdown, "for a pull request"))


def plan_command(
    source: Plan | ScoreReport, scores: Path, *options: str, without: Iterable[str] = ()
) -> str:
    """`hlscore plan` with the settings of a plan or of a run, then further options.

    Args:
        without: Fields of the settings that `options` give.
    """
    if isinstance(source, Plan):
        settings: Any = asdict(source.settings)
        ranked: Any = source.provenance.settings.get("plan", {})
    else:
        settings = source.run.settings.get("plan", {})
        ranked = {"score": source.run.score, "rank": source.run.rank}
    # What the report was ranked by is the default.
    same = [name for name in ("score", "rank") if settings.get(name) == ranked.get(name)]
    words = arguments(PlanSettings, settings, without=[*without, *same])
    return command("plan", scores, *words, *options)


def scores_beside(plan: Plan, path: Path) -> Path | None:
    """The scores that selected a plan, if they are in its directory."""
    scores = path.with_name(SCORES_FILE)
    return scores if plan.method == "score" and scores.is_file() else None
