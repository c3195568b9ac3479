"""A plan as a table, for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.exporters.formats import Exporter, ExportSettings, Writer, text_file
from hlscore.exporters.limits import Limits

_COLUMNS = tuple(PlanModule.model_fields)


def csv_text(plan: Plan) -> str:
    """One row per candidate, with the fields of the plan as columns.

    Args:
        plan: Any plan.

    Returns:
        CSV with a header line; the last column is the fingerprint of the weights. Texts that a
        spreadsheet would run as a formula start with an apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*_COLUMNS, "plan_weights"))
    for item in plan.modules:
        values = (_cell(getattr(item, name)) for name in _COLUMNS)
        writer.writerow((*values, plan.model.fingerprint.weights))
    return out.getvalue()


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _files(plan: Plan, settings: ExportSettings) -> dict[str, Writer]:
    del settings
    return {"plan.csv": text_file(csv_text(plan))}


EXPORTER = Exporter(
    name="csv",
    summary="a table with one row per module",
    limits=Limits(trainer="a table", peft=False),
    files=_files,
    rates=False,
)
