"""A plan as a table, for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io

from hlscore.artifacts.plan import PlanModule
from hlscore.exporters.exporter import Export, Exporter
from hlscore.exporters.limits import Limits


def _files(export: Export) -> dict[str, str]:
    """One row per candidate with the fields of the plan, and the fingerprint of the weights."""
    columns, out = tuple(PlanModule.model_fields), io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*columns, "plan_weights"))
    for item in export.plan.modules:
        values = [getattr(item, name) for name in columns]
        for place, value in enumerate(values):
            if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
                values[place] = f"'{value}"  # a spreadsheet would run it as a formula
        writer.writerow((*values, export.plan.model.fingerprint.weights))
    return {"plan.csv": out.getvalue()}


EXPORTER = Exporter(
    name="csv",
    summary="a table with one row per module",
    limits=Limits(trainer="a table", peft=False),
    files=_files,
    rates=0,
)
