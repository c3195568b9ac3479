"""Whether a file is a plan at all: text, version, schema, names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hlscore.artifacts.plan_file import Fault, FaultKind
from hlscore.checks.rule import PLAN_AGAIN, Case, Finding, Rule

FILE = Rule(
    code="HLS101",
    name="readable",
    asks="The file is JSON in UTF-8, with each key once and numbers of 64 bits.",
    why="Readers differ in what they make of anything else, so two tools would see two plans.",
    remedy="Restore the file from the repository, or make the plan again with `hlscore plan`.",
)
VERSION = Rule(
    code="HLS102",
    name="known version",
    asks="The plan has a schema version that this hlscore reads.",
    why="The meaning of its fields is unknown.",
    remedy="Use the hlscore that wrote it, or make the plan again with this one.",
)
SCHEMA = Rule(
    code="HLS103",
    name="schema",
    asks="Every key is there, no other one is, and every value has the type and range it must.",
    why="A trainer that reads such a plan stops, or trains something else.",
    remedy=f"`hlscore schema` prints the JSON Schema. {PLAN_AGAIN}",
)
DUPLICATE = Rule(
    code="HLS105",
    name="each module once",
    asks="No module is listed twice.",
    why="Which of the two entries counts would depend on the reader.",
    remedy=f"Remove one of the two. {PLAN_AGAIN}",
)
OVERLAP = Rule(
    code="HLS106",
    name="no overlap",
    asks="No weight belongs to two entries: none lies inside another or is also skipped.",
    why="A trainer would train the weight twice, or against the plan.",
    remedy=f"Remove one of the two entries. {PLAN_AGAIN}",
)
MODE_RANK = Rule(
    code="HLS107",
    name="rank with LoRA",
    asks="A module has a rank and an alpha exactly where its mode is lora.",
    why="A rank on a module in full, or LoRA without one, cannot be trained.",
)
WEIGHT_NAME = Rule(
    code="HLS108",
    name="own weight",
    asks="The parameter of a module is that module's own weight.",
    why="Exports name some modules by their parameter: another weight would be trained.",
)
PRINTABLE = Rule(
    code="HLS109",
    name="printable names",
    asks="Names hold no control characters.",
    why="Names go into YAML, scripts and terminals, where such characters can do harm.",
    remedy="Do not use this plan: no model of transformers has such names.",
)
RANK_FITS = Rule(
    code="HLS110",
    name="rank fits shape",
    asks="The LoRA rank of a module is below the smaller side of its matrix.",
    why="From there on LoRA can express every change, and trains more than the module has.",
    remedy="Pin it when planning: --lock 'MODULE=full' or =rank:N, or choose from --ranks.",
    level="warning",
)

_BY_FAULT: dict[FaultKind, Rule] = {
    "json": FILE,
    "version": VERSION,
    "schema": SCHEMA,
    "rank": MODE_RANK,
    "duplicate": DUPLICATE,
    "weight": WEIGHT_NAME,
    "text": PRINTABLE,
}


def check_file(faults: Iterable[Fault]) -> Iterator[Finding]:
    """Find what keeps a file from being a plan."""
    for fault in faults:
        where = f"at '{'.'.join(map(str, fault.path))}': " if fault.kind == "schema" else ""
        message = f"{where}{fault.message}."
        yield _BY_FAULT[fault.kind].finding(
            message[0].upper() + message[1:], fault.path, place=fault.place
        )


def check(case: Case) -> Iterator[Finding]:
    """Find entries that share a weight, and ranks that do not fit their matrix."""
    plan = case.plan
    modules = {item.module: item for item in reversed(plan.modules)}
    parameters = {item.parameter: item.module for item in reversed(plan.modules)}
    for place, item in enumerate(plan.modules):
        path = ("modules", place, "module")
        owner = parameters[item.parameter]
        if owner != item.module:
            message = f"'{item.module}' has the weight '{item.parameter}', and so has '{owner}'."
            yield OVERLAP.finding(message, path)
        parts = item.module.split(".")
        for end in range(1, len(parts)):
            outer = modules.get(".".join(parts[:end]))
            if outer is not None and outer.mode != "frozen":
                message = f"'{item.module}' lies inside '{outer.module}', which is planned too."
                yield OVERLAP.finding(message, path)
        if item.rank is not None and item.rank >= min(item.out_features, item.in_features):
            yield RANK_FITS.finding(
                f"LoRA of rank {item.rank} spans the whole of '{item.module}', which is "
                f"{item.out_features} x {item.in_features}.",
                ("modules", place, "rank"),
            )
    for place, left_out in enumerate(plan.skipped):
        if left_out.module in modules:
            message = f"'{left_out.module}' is both planned and skipped."
            yield OVERLAP.finding(message, ("skipped", place, "module"))
