"""Training data as `rank` read it: columns by the names that trainers know, numbers as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hlscore.artifacts.plan import Plan

if TYPE_CHECKING:
    from datasets import Dataset

# Columns of text: the probes read numbers there as text, and tokenizers take nothing else.
_TEXTS = ("text", "prompt", "completion", "chosen", "rejected")


def as_probed(data: Dataset, plan: Plan) -> Dataset:
    """The rows with the columns that the probes had.

    There is a column for each role that the plan's `--column` options name; the columns that were
    there stay, for reward functions. Numbers in columns of text become text.
    """
    from datasets import Value

    there = set(data.column_names)
    read = plan.provenance.settings.get("data")
    named = read.get("columns") if isinstance(read, Mapping) else None
    for role, column in (named if isinstance(named, Mapping) else {}).items():
        if column in there and column != role:
            values = data[column]
            data = data.remove_columns(role) if role in there else data
            data = data.add_column(role, list(values))
    for role in _TEXTS:
        kind = data.features.get(role)
        if isinstance(kind, Value) and kind.dtype.startswith(("int", "uint", "float")):
            texts = [None if value is None else str(value) for value in data[role]]
            data = data.remove_columns(role).add_column(role, texts)
    return data
