"""Whether trainers can express a plan."""

from __future__ import annotations

from collections.abc import Iterator

from hlscore.checks.rule import Case, Finding, Rule
from hlscore.exporters.exporter import find_exporter
from hlscore.exporters.limits import FaultKind, faults

TRAINER_MODE = Rule(
    code="HLS401",
    name="supported by the trainer",
    asks="The trainer can train each module as planned.",
    why="It would stop, or train the module otherwise.",
    remedy="`hlscore export --nearest` writes the nearest plan that it can run.",
    when=("trainers",),
)
TRAINER_TIED = Rule(
    code="HLS402",
    name="tied weights",
    asks="No tied weight is planned in a way that PEFT unties or merges wrongly.",
    why="After merging the two uses of the weight differ, and the model is broken.",
    remedy="Pin it when planning: --lock 'MODULE=frozen'.",
    when=("trainers",),
)
TRAINER_NAMES = Rule(
    code="HLS403",
    name="no suffix collision",
    asks="No other name of the model ends like the name of a trained module, or lies inside it.",
    why="PEFT matches the ends of names, and would train the other one too.",
    remedy="Pin it when planning: --lock 'MODULE=frozen', or treat both names alike.",
    when=("trainers",),
)
TRAINER_EXPERTS = Rule(
    code="HLS404",
    name="experts together",
    asks="The expert weights of a block are all in full, or none is.",
    why="PEFT copies the module that holds all of them.",
    remedy="Pin them alike when planning: --lock '*.experts.*=lora' or =full.",
    when=("trainers",),
)
TRAINER_READ_PAST = Rule(
    code="HLS405",
    name="LoRA has an effect",
    asks="No LoRA sits on a weight that the model's code or kernels read directly.",
    why="The adapter would be trained without effect.",
    remedy="Pin it when planning: --lock 'MODULE=frozen' or =full.",
    when=("trainers",),
)
TRAINER_RANKS = Rule(
    code="HLS406",
    name="ranks of the trainer",
    asks="Where the trainer knows one LoRA rank, the plan has one.",
    why="It would give every module the same rank.",
    remedy="Plan without --ranks, or export with --nearest.",
    when=("trainers",),
)
TRAINER_WHOLE = Rule(
    code="HLS407",
    name="plan as a whole",
    asks="The trainer can run a plan with these modes and base weights.",
    why="Some trainers need LoRA somewhere, a module in full, or weights of 16 bits.",
    remedy="Plan with another budget, other locks or --base 16.",
    when=("trainers",),
)

_BY_FAULT: dict[FaultKind, Rule] = {
    "mode": TRAINER_MODE,
    "tied": TRAINER_TIED,
    "name": TRAINER_NAMES,
    "experts": TRAINER_EXPERTS,
    "read_past": TRAINER_READ_PAST,
    "ranks": TRAINER_RANKS,
    "whole": TRAINER_WHOLE,
}


def check(case: Case) -> Iterator[Finding]:
    """Find what trainers cannot express."""
    places = {item.module: place for place, item in enumerate(case.plan.modules)}
    for name in case.settings.trainers:
        for fault in faults(case.plan, find_exporter(name).limits):
            first = fault.modules[0] if fault.modules else ""
            path = ("modules", places[first], "module") if first in places else ("modules",)
            yield _BY_FAULT[fault.kind].finding(f"{name}: {fault.reason}", *path)
