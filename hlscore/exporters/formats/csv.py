"""A plan as a table, for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.exporters.exporter import Exporter
from hlscore.exporters.limits import Limits

_COLUMNS = tuple(PlanModule.model_fields)


def _text(plan: Plan) -> str:
    """One row per candidate with the fields of the plan, and the fingerprint of the weights."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*_COLUMNS, "plan_weights"))
    for item in plan.modules:
        values = (_cell(getattr(item, name)) for name in _COLUMNS)
        writer.writerow((*values, plan.model.fingerprint.weights))
    return out.getvalue()


def _cell(value: object) -> object:
    """A value; a text that a spreadsheet would run as a formula starts with an apostrophe."""
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


EXPORTER = Exporter(
    name="csv",
    summary="a table with one row per module",
    limits=Limits(trainer="a table", peft=False),
    files=lambda plan, settings: {"plan.csv": _text(plan)},  # noqa: ARG005
    rates=False,
)
