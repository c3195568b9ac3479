"""Files that commands which only read are tried on, and what they printed read back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from console import hlscore
from report_content import planned
from reports import report

from hlscore.artifacts.plan_file import write_plan
from hlscore.artifacts.report import write_report
from hlscore.records import ScoreReport
from hlscore.scores.registry import SCORES
from hlscore.scores.rows import order_rows

Row = dict[str, Any]

_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def mixed_report(count: int = 30) -> ScoreReport:
    """A numbered report with nulls, ties, negative scores and all three kinds of status."""
    found = report(count)
    changes: dict[int, Row] = {
        2: {"status": "unreached", "matrices_reached": 0, "reason": "its gradient is zero"},
        4: {"rgn": None, "weight_norm": 0.0, "taylor": 0.0},
        6: {"stable_rank": None, "effective_rank": None, "rank_for_90": None},
        7: {"tail": None, "selection_probability": 0.75},
        8: {"hls": -0.01, "hls_curve": (1.0, 0.5, -0.01, 0.2, 0.1), "taylor": 0.5},
        9: {"taylor": 0.5, "selection_probability": 0.05},
        11: {"matrices": 4, "matrices_reached": 3, "form": "experts", "reason": "one is silent"},
        13: {"layer": None, "block": ""},
    }
    silent = dict.fromkeys(("hls", "tail", "grad_norm", "rgn", "taylor", "random"))
    changes[2] |= silent | {"hls_curve": (0.0,) * 5, "tail_curve": (0.0,) * 5}
    changes[11]["n_params"] = 4 * found.rows[11].n_params
    rows = tuple(replace(row, **changes.get(place, {})) for place, row in enumerate(found.rows))
    return replace(found, rows=order_rows(rows, SCORES["hls"], 4))


def same_score(found: ScoreReport, value: float | None) -> ScoreReport:
    """The report with one value for every score of every candidate."""
    scores = dict.fromkeys(SCORES, value)
    rows = tuple(row.changed(**scores) if row.is_candidate else row for row in found.rows)
    return replace(found, rows=rows)


def renamed(
    found: ScoreReport, names: Sequence[str] | Mapping[int, str], **model: Any
) -> ScoreReport:
    """A report with other names of its first modules, or by place, for a model that is another one.

    The kind is the end of each name.
    """
    rows = list(found.rows)
    for place, name in (names if isinstance(names, Mapping) else dict(enumerate(names))).items():
        kind = name.rpartition(".")[2]
        rows[place] = replace(
            rows[place], module=name, parameter=f"{name}.weight", kind=kind, block=""
        )
    other = replace(found.model.fingerprint, structure="sha256:other")
    return replace(found, rows=tuple(rows), model=replace(found.model, fingerprint=other, **model))


def save(found: ScoreReport, path: Path) -> Path:
    """Writes a `scores.parquet`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_report(found, path)
    return path


def save_plan(found: ScoreReport, path: Path, **settings: Any) -> Path:
    """Writes the `plan.json` that a report gives."""
    write_plan(planned(found, **{"budget": "0.25", **settings}), path)
    return path


def read_rows(path: Path) -> list[Row]:
    return in_order(pq.read_table(path).to_pylist(), "rank", falling=False)


def read_modules(path: Path) -> list[Row]:
    return in_order(json.loads(path.read_text())["modules"], "position", falling=False)


def in_order(rows: Sequence[Row], field: str, *, falling: bool) -> list[Row]:
    """Take the first of the best again and again; what has no value comes last."""
    left, found = [row for row in rows if row[field] is not None], []
    while left:
        best = (max if falling else min)(row[field] for row in left)
        place = next(place for place, row in enumerate(left) if row[field] == best)
        found.append(left.pop(place))
    return found + [row for row in rows if row[field] is None]


def told(*arguments: object) -> Any:
    """What a command prints with `--json`, and nothing else."""
    return json.loads(printed(*arguments, "--json"))


def printed(*arguments: object) -> str:
    """What a command prints; nothing on standard error."""
    found = hlscore(*arguments)
    assert (found.code, found.err) == (0, "")
    return found.out


def modules(found: Any) -> list[str]:
    return [row["module"] for row in found["rows"]]


def table(out: str) -> list[list[str]]:
    """Words of each line of the table of modules; folded names are put together."""
    lines = out.split("\n")
    first = next(at for at, line in enumerate(lines) if line.split()[:2] == ["#", "module"])
    indent = lines[first].index("module")
    found: list[list[str]] = []
    for line in lines[first + 1 :]:
        if not line:
            return found
        if line[:indent].strip():
            found.append(line.split())
        elif not line[indent:].startswith(("  ", "... ")):
            found[-1][1] += line.strip()
    raise AssertionError("the table has no end")


def heat_map(out: str) -> dict[str, str]:
    """Cells of the heat map by label; the layer ruler is a line of it."""
    lines = out.split("\n")
    last = next(at for at, line in enumerate(lines) if line.startswith("layer "))
    first = max(at for at in range(last) if not lines[at]) + 1
    margin = re.search(r"layer +", lines[last])
    assert margin is not None
    return {line[: margin.end()].strip(): line[margin.end() :] for line in lines[first : last + 1]}


def commands(out: str) -> list[str]:
    _, end = out.split("\nnext\n")
    return [line.strip() for line in end.splitlines() if not line.startswith("  #")]


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def unstyled(text: str) -> str:
    return _STYLE.sub("", text)
