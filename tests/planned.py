"""Plans of made-up reports."""

from __future__ import annotations

from typing import Any

from hlscore.artifacts.plan import Plan
from hlscore.planning.make_plan import make_plan
from hlscore.records import ScoreReport
from hlscore.settings import MemorySettings, PlanSettings

SMALL = MemorySettings(train_length=16)


def plan(report: ScoreReport, **given: Any) -> Plan:
    """The plan of rank 4 and a quarter of the modules in full, unless settings say otherwise."""
    return make_plan(report, PlanSettings(**{"rank": 4, "budget": "0.25", **given}))


def modes(made: Plan) -> dict[str, tuple[str, int]]:
    """Mode and LoRA rank of each module."""
    return {item.module: (item.mode, item.rank or 0) for item in made.modules}


def full(made: Plan) -> set[str]:
    """Modules trained in full."""
    return {item.module for item in made.full}
