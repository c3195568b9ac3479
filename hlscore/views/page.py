"""What `report` prints."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from rich.text import Text

from hlscore.artifacts.plan import Plan
from hlscore.views.terminal import print_next, terminal
from hlscore.views.wording import count, memory

_OPENED = (".html", ".png", ".svg")


def print_page(plan: Plan, path: Path, scores: Path, plan_file: Path | None) -> None:
    """Print where a report is, how large, and what to do next.

    Args:
        plan_file: The plan that it was made from; `None` where it was made for the report.
    """
    console, totals = terminal(), plan.totals
    console.print(
        Text.assemble(
            (plan.model.name, "bold"),
            f"  {totals.full_modules:,} of {count(totals.candidate_modules, 'module')} in full",
            f", by a plan of budget {plan.budget.asked} made for the report"
            if plan_file is None
            else "",
        ),
        soft_wrap=True,
    )
    size = memory(path.stat().st_size)
    console.print(Text.assemble(("report  ", "bold"), str(path), f"  {size}"), soft_wrap=True)
    quoted = shlex.quote(str(path))
    inputs = " ".join(shlex.quote(str(item)) for item in (scores, plan_file) if item is not None)
    commands = []
    if path.suffix.lower() in _OPENED:
        commands.append((f"python -m webbrowser {_address(path)}", "look at it"))
    if path.suffix.lower() != ".md":
        markdown = shlex.quote(str(path.with_suffix(".md")))
        commands.append((f"hlscore report {inputs} -o {markdown}", "for a pull request"))
    else:
        commands.append((f"gh pr comment --body-file {quoted}", "put it under a pull request"))
    print_next(console, *commands)


def _address(path: Path) -> str:
    return shlex.quote(path.resolve().as_uri())


def print_page_json(plan: Plan, path: Path, plan_file: Path | None) -> None:
    """Print the same as one JSON object.

    Args:
        plan_file: The plan that it was made from; `None` where it was made for the report.
    """
    print(
        json.dumps(
            {
                "report": str(path),
                "format": path.suffix.lower().removeprefix("."),
                "bytes": path.stat().st_size,
                "plan_file": None if plan_file is None else str(plan_file),
                "budget": plan.budget.asked,
                "full_modules": plan.totals.full_modules,
                "candidate_modules": plan.totals.candidate_modules,
            }
        )
    )
