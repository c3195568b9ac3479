"""The command that would make a plan again, for what is printed as the next command."""

from __future__ import annotations

import shlex
from pathlib import Path

from hlscore.artifacts.files import SCORES_FILE
from hlscore.artifacts.plan import Plan
from hlscore.settings import VALUE_POWER


def scores_beside(plan: Plan, path: Path) -> Path | None:
    """The scores that a plan was chosen by, where they lie in its directory.

    Args:
        plan: The plan.
        path: Its file.

    Returns:
        The file; None where there is none, or where no score chose the plan.
    """
    scores = path.with_name(SCORES_FILE)
    return scores if plan.method == "score" and scores.is_file() else None


def replan(plan: Plan, scores: Path) -> str:
    """`hlscore plan` with the budget, ranks and value of a plan.

    Args:
        plan: The plan.
        scores: The scores that it was chosen by.

    Returns:
        The command, to which options can be added.
    """
    words = ["hlscore", "plan", str(scores), "--budget", plan.budget.asked]
    if plan.lora.ranks:
        words += ["--ranks", ",".join(map(str, plan.lora.ranks))]
    if plan.solver.value_power not in (None, VALUE_POWER):
        words += ["--value-power", f"{plan.solver.value_power:g}"]
    return shlex.join(words)
