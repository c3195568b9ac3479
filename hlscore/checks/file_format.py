"""Whether a file is a plan at all: text, version, schema, names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from hlscore.artifacts.plan_file import Fault, FaultKind
from hlscore.checks.rule import Case, Finding, finding

_CODES: dict[FaultKind, str] = {
    "json": "HLS101",
    "version": "HLS102",
    "schema": "HLS103",
    "rank": "HLS107",
    "duplicate": "HLS105",
    "weight": "HLS108",
    "text": "HLS109",
}


def check_file(faults: Iterable[Fault]) -> Iterator[Finding]:
    """Find what keeps a file from being a plan."""
    for fault in faults:
        where = f"at '{'.'.join(map(str, fault.path))}': " if fault.kind == "schema" else ""
        message = f"{where}{fault.message}."
        found = finding(_CODES[fault.kind], message[0].upper() + message[1:], fault.path)
        yield replace(found, place=fault.place)


def check_entries(case: Case) -> Iterator[Finding]:
    """Find entries that share a weight, and ranks that do not fit their matrix."""
    plan = case.plan
    modules = {item.module: item for item in reversed(plan.modules)}
    parameters = {item.parameter: item.module for item in reversed(plan.modules)}
    for place, item in enumerate(plan.modules):
        path = ("modules", place, "module")
        owner = parameters[item.parameter]
        if owner != item.module:
            message = f"'{item.module}' has the weight '{item.parameter}', and so has '{owner}'."
            yield finding("HLS106", message, path)
        parts = item.module.split(".")
        for end in range(1, len(parts)):
            outer = modules.get(".".join(parts[:end]))
            if outer is not None and outer.mode != "frozen":
                message = f"'{item.module}' lies inside '{outer.module}', which is planned too."
                yield finding("HLS106", message, path)
        if item.rank is not None and item.rank >= item.max_rank:
            yield finding(
                "HLS110",
                f"LoRA of rank {item.rank} spans the whole of '{item.module}', which is "
                f"{item.size}.",
                ("modules", place, "rank"),
            )
    for place, left_out in enumerate(plan.skipped):
        if left_out.module in modules:
            message = f"'{left_out.module}' is both planned and skipped."
            yield finding("HLS106", message, ("skipped", place, "module"))
