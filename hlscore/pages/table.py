"""The table of all modules, as texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hlscore.pages.content import Line
from hlscore.records import ModuleRow
from hlscore.views.wording import measure, shape

Cells = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        title: Its heading.
        sort: How its cells are put in order.
    """

    title: str
    sort: Literal["number", "text"]


COLUMNS = (
    Column("#", "number"),
    Column("module", "text"),
    Column("score", "number"),
    Column("± se", "number"),
    Column("95 % interval", "number"),
    Column("chosen in", "number"),
    Column("out x in", "number"),
    Column("parameters", "number"),
    Column("trained as", "text"),
    Column("trained parameters", "number"),
    Column("remark", "text"),
)

_NONE = "-"


def table_cells(line: Line) -> Cells:
    """Texts of a candidate, one per column."""
    row = line.row
    return (
        str(row.rank),
        row.module,
        measure(line.score),
        measure(line.stderr),
        _NONE if line.low is None else f"{measure(line.low)} to {measure(line.high)}",
        _NONE if line.chosen is None else f"{100 * line.chosen:.0f} %",
        shape(row.matrices, row.out_features, row.in_features),
        f"{row.n_params:,}",
        f"LoRA {line.rank}" if line.mode == "lora" else line.mode,
        f"{line.trained_params:,}",
        _remark(line),
    )


def _remark(line: Line) -> str:
    return "; ".join(text for text in ("locked" if line.locked else "", line.remark) if text)


def skipped_cells(row: ModuleRow) -> Cells:
    """Texts of a weight that is no candidate, one per column."""
    size = shape(row.matrices, row.out_features, row.in_features)
    blank = (_NONE,) * 4
    return (_NONE, row.module, *blank, size, f"{row.n_params:,}", "left out", "0", row.reason)
