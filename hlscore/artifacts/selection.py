"""Which modules of a plan or report are looked at, and in which order."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from hlscore.artifacts.plan import Plan, PlanSkipped
from hlscore.artifacts.report import report_schema
from hlscore.errors import UsageError
from hlscore.records import Matrix, ScoreReport
from hlscore.settings import Filters
from hlscore.wording import first_of

_MOST_NAMED = 8
_MOST_ALIKE = 3

M = TypeVar("M", bound=Matrix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Something that modules can be ordered by."""

    name: str  # on the command line
    field: str  # of the module
    rising: bool  # whether the smallest comes first


def matching(modules: Sequence[M], filters: Filters) -> tuple[M, ...]:
    """The modules that pass, in the same order; refuses a kind that no module has."""
    kinds = {kind for item in modules for kind in (item.kind, f"{item.block}.{item.kind}")}
    if filters.kind is not None and modules and filters.kind not in kinds:
        raise UsageError(
            f"--kind '{filters.kind}' is no kind of module in this file.",
            hint=f"Use one of: {', '.join(dict.fromkeys(item.kind for item in modules))}.",
        )
    first, last = filters.layers or (0, 0)
    asked = {"mode": filters.mode, "status": filters.status}
    asked = {name: wanted for name, wanted in asked.items() if wanted is not None}
    return tuple(
        item
        for item in modules
        if (not filters.match or any(fnmatch.fnmatchcase(item.module, g) for g in filters.match))
        and filters.kind in (None, item.kind, f"{item.block}.{item.kind}")
        and (filters.layer is None or (item.layer is not None and first <= item.layer <= last))
        and all(getattr(item, name) == wanted for name, wanted in asked.items())
    )


def columns_of(artifact: Plan | ScoreReport) -> dict[str, Column]:
    """What the modules of a file can be ordered by, by name: all but lists and free texts."""
    if isinstance(artifact, Plan):
        rising = ["position", "module", "layer", "kind", "block", "mode"]
        falling = ["score", "selection_probability", "params", "trained_params", "rank",
                   "matrices", "out_features", "in_features"]  # fmt: skip
        names = {artifact.score.name: "score", "place": "position"}
    else:
        rising = ["rank", "module", "layer", "kind", "block", "status"]
        falling = ["params"]
        falling += [
            item.name for item in report_schema()
            if not pa.types.is_nested(item.type) and not pa.types.is_string(item.type)
        ]  # fmt: skip
        names = {"place": "rank"}
    names |= {name: name for name in (*rising, *falling)}
    if isinstance(artifact, ScoreReport):
        names["params"] = "n_params"
    return {
        name: Column(name=name, field=field, rising=field in rising)
        for name, field in names.items()
    }


def find_column(columns: Mapping[str, Column], name: str, option: str) -> Column:
    """Look a column up by name."""
    if name not in columns:
        raise UsageError(
            f"{option} '{name}' is no column of this file.",
            hint=f"Use one of: {', '.join(columns)}.",
        )
    return columns[name]


def ordered(modules: Sequence[M], column: Column, *, reverse: bool) -> tuple[M, ...]:
    """Order modules by a column; those without a value go last, ties keep their order."""
    known = [item for item in modules if getattr(item, column.field) is not None]
    missing = [item for item in modules if getattr(item, column.field) is None]
    known.sort(key=lambda item: getattr(item, column.field), reverse=column.rising == reverse)
    return (*known, *missing)


def find_module(
    modules: Sequence[M], name: str, filters: Filters, skipped: Sequence[PlanSkipped] = ()
) -> M:
    """Find one module by its full name, or by an end of it that no other module has."""
    whole = [item for item in modules if item.module == name]
    ends = whole or [item for item in modules if item.module.endswith(f".{name}")]
    if len(ends) == 1:
        return ends[0]
    if ends:
        listed = first_of([item.module for item in ends], _MOST_NAMED)
        raise UsageError(
            f"'{name}' is the end of {len(ends)} names: {listed}.",
            hint="Give more of the name, or --layer.",
        )
    for item in skipped:
        if f".{item.module}".endswith(f".{name}"):
            raise UsageError(
                f"The plan skips '{item.module}': {item.reason}.",
                hint="Skipped weights stay frozen; `hlscore modules MODEL --all` lists them.",
            )
    asked = f" that matches {filters}" if str(filters) else ""
    names = [item.module for item in _near(modules, name) or modules]
    raise UsageError(
        f"No module{asked} is called '{name}'.",
        hint=f"There are: {first_of(names, _MOST_NAMED)}." if modules else "",
    )


def _near(modules: Sequence[M], name: str) -> list[M]:
    """Modules whose names hold a name, or else end on something like it."""
    holding = [item for item in modules if name and name.lower() in item.module.lower()]
    if holding:
        return holding
    parts = 1 + name.count(".")
    ends: dict[str, list[M]] = {}
    for item in modules:
        ends.setdefault(".".join(item.module.split(".")[-parts:]), []).append(item)
    alike = difflib.get_close_matches(name, ends, n=_MOST_ALIKE)
    return [item for end in alike for item in ends[end]]
