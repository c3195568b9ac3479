"""What a trainer cannot express, the plans that this refuses, and the nearest plan it can run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.errors import UsageError


class ExportError(UsageError):
    """A trainer cannot express the plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a trainer can express. Every trainer that runs PEFT shares PEFT's own limits.

    Attributes:
        trainer: What to call it.
        full: Whether it can train modules in full beside LoRA.
        lora: Whether it can train LoRA.
        ranks: Whether modules can have ranks of their own.
        parameters: Whether LoRA can go on a weight that is no linear layer: routers, experts, and
            the linear layers that PEFT reaches only by parameter name.
        only_full: Whether a plan without LoRA can be run.
        only_lora: Whether a plan without full modules can be run.
        peft: Whether modules are found by PEFT, with its traps.
    """

    trainer: str
    full: bool = True
    lora: bool = True
    ranks: bool = True
    parameters: bool = True
    only_full: bool = True
    only_lora: bool = True
    peft: bool = True
