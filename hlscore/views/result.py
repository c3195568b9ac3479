"""What `rank`, `plan` and `report` print: results first, then the next commands to run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.text import Text

from hlscore.artifacts.files import PLAN_FILE, ROLLOUTS_FILE, SCORES_FILE
from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.records import ScoreReport
from hlscore.views.drawings import print_heat_map
from hlscore.views.next_commands import after_rank
from hlscore.views.summary import chosen_in, headline, run_notes, summary, training
from hlscore.views.terminal import ModuleLine, Terminal, command, picked, print_json
from hlscore.wording import count, measure, memory


def print_result(
    report: ScoreReport | None,
    plan: Plan,
    paths: Mapping[str, Path],
    *,
    top: int,
    as_json: bool = False,
    console: Terminal | None = None,
) -> None:
    """Print what a run found, the files it wrote, and what to do next.

    Args:
        report: `None` where a plan was made from stored scores.
        paths: Of the files, by the names that they have by default.
    """
    if as_json:
        keys = {SCORES_FILE: "scores", PLAN_FILE: "plan_file", ROLLOUTS_FILE: "rollouts"}
        files = {keys[name]: path for name, path in paths.items()}
        print_json({**files, "plan": plan.model_dump(mode="json")})
        return
    console = console or Terminal()
    console.print(headline(report or plan))
    print_plan_modules(console, plan, plan.modules, top=top)
    console.notes(dict.fromkeys((*(run_notes(report) if report else ()), *plan.notes)))
    console.print()
    width = 2 + max(len(Path(name).stem) for name in paths)
    console.labelled([(Path(name).stem, str(path)) for name, path in paths.items()], width)
    if report is not None:
        console.next_steps(*after_rank(report, plan, paths))


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
    print_heat_map(console, modules, score, "score")
    console.print()
    console.labelled(summary(plan).items())


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
