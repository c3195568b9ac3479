"""What `report` prints."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.text import Text

from hlscore.artifacts.plan import Plan
from hlscore.views.terminal import Terminal, command, picked, print_json
from hlscore.wording import count, memory


def print_written(
    plan: Plan, path: Path, scores: Path, plan_file: Path | None, *, as_json: bool
) -> None:
    """Print where a report is, how large, and what to do next.

    Args:
        plan_file: `None` where the plan was made for the report.
    """
    console, totals = Terminal(), plan.totals
    if as_json:
        print_json({
            "report": path,
            "format": path.suffix.lower().removeprefix("."),
            "bytes": path.stat().st_size,
            "plan_file": plan_file,
            "budget": plan.budget.asked,
            **picked(totals, "full_modules", "candidate_modules"),
        })  # fmt: skip
        return
    made = f", by a plan of budget {plan.budget.asked} made for the report"
    full = f"{totals.full_modules:,} of {count(totals.candidate_modules, 'module')} in full"
    console.print(Text.assemble((plan.model.name, "bold"), f"  {full}{'' if plan_file else made}"))
    console.labelled([("report", f"{path}  {memory(path.stat().st_size)}")])
    commands = []
    if path.suffix.lower() != ".md":
        browser = shlex.join(["python", "-m", "webbrowser", path.resolve().as_uri()])
        inputs = [scores, *([plan_file] if plan_file else [])]
        markdown = command("report", *inputs, "-o", path.with_suffix(".md"))
        commands += [(browser, "look at it"), (markdown, "for a pull request")]
    else:
        comment = f"gh pr comment --body-file {shlex.quote(str(path))}"
        commands.append((comment, "post it on a pull request"))
    console.next_steps(*commands)
