"""The table of all modules, as texts."""

from __future__ import annotations

from hlscore.pages.content import Line
from hlscore.records import ModuleRow
from hlscore.views.summary import chosen_in, training
from hlscore.views.wording import measure, shape

COLUMNS = {
    "#": "number",
    "module": "text",
    "score": "number",
    "± se": "number",
    "95 % interval": "number",
    "chosen in": "number",
    "out x in": "number",
    "parameters": "number",
    "trained as": "text",
    "trained parameters": "number",
    "remark": "text",
}
"""How the cells of each column are sorted."""


def table_cells(line: Line) -> list[str]:
    """Texts of a candidate, one per column."""
    row = line.row
    return [
        str(row.rank),
        row.module,
        measure(line.score),
        measure(line.stderr),
        "-" if line.low is None else f"{measure(line.low)} to {measure(line.high)}",
        chosen_in(line.chosen),
        shape(row),
        f"{row.n_params:,}",
        training(line.mode, line.rank),
        f"{line.trained_params:,}",
        "; ".join(text for text in ("locked" if line.locked else "", line.remark) if text),
    ]


def skipped_cells(row: ModuleRow) -> list[str]:
    """Texts of a weight that is no candidate, one per column."""
    size = shape(row)
    return ["-", row.module, *"----", size, f"{row.n_params:,}", "left out", "0", row.reason]
