"""Plans for real models with modes of one's choice, made by the real allocation."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import reports
from families import FAMILIES
from transformers import PreTrainedModel

from hlscore.artifacts.plan import Plan
from hlscore.inputs.identity import identify
from hlscore.inputs.modules import find_modules
from hlscore.planning.make_plan import make_plan
from hlscore.records import ModuleRow, ScoreReport
from hlscore.settings import CandidateSettings, MemorySettings, PlanSettings

RANKS = (0, 1, 2, 4, 8)


def report_for(
    model: PreTrainedModel, name: str = "org/model", *, embeddings: bool = False, head: bool = False
) -> ScoreReport:
    """A report of a real model with made-up scores that fall from module to module."""
    names = ("module", "parameter", "layer", "kind", "block", "matrices", "out_features",
             "in_features", "n_params", "form", "storage")  # fmt: skip
    rows = []
    for place, item in enumerate(
        find_modules(model, CandidateSettings(embeddings=embeddings, head=head))
    ):
        base: dict[str, Any] = {name: getattr(item, name) for name in names} | {"rank": None}
        if item.skipped:
            base |= {name: getattr(item, name) for name in ("reason", "left_out", "tied_to")}
            rows.append(ModuleRow(**base, matrices_reached=None, status="skipped"))
            continue
        energy = 10.0 / (place + 1)
        curve, errors = tuple(energy / (1 + rank) for rank in RANKS), (0.0,) * len(RANKS)
        rows.append(ModuleRow(
            **base, matrices_reached=item.matrices, hls=curve[2], tail=curve[2],
            tail_energy=curve[2], grad_norm=energy, grad_energy=energy, random=1 / (place + 2),
            curve_ranks=RANKS, tail_curve=curve, tail_curve_errors=errors, hls_curve=curve,
            hls_curve_errors=errors,
        ))  # fmt: skip
    return replace(reports.report(1), rows=tuple(rows), model=identify(model, name, None))


def plan_for(
    model: PreTrainedModel,
    locks: Sequence[str],
    name: str = "org/model",
    *,
    rank: int = 4,
    embeddings: bool = False,
    head: bool = False,
    memory: Mapping[str, Any] | None = None,
) -> Plan:
    """A plan for a real model in which every module that no lock names gets LoRA.

    Args:
        locks: Such as `*.down_proj=full`, `*.0.*=frozen`, `*q_proj=rank:2`; the last one counts.
        embeddings: Whether the input embedding is a candidate.
        head: Whether the output head is a candidate.
        memory: Fields of `MemorySettings`.
    """
    report = report_for(model, name, embeddings=embeddings, head=head)
    tied = {row.tied_to for row in report.rows}
    lora = [f"{row.module}=lora" for row in report.candidates if row.module not in tied]
    settings = PlanSettings(
        budget="1",
        rank=rank,
        locks=("*=frozen", *lora, *locks),
        memory=MemorySettings(**(memory or {})),
    )
    return make_plan(report, settings)


def family_plan(family: str, *locks: str, **settings: Any) -> Plan:
    """A plan for the model of a family, with the same settings."""
    return plan_for(_built(family), locks, **settings)


@functools.cache
def _built(family: str) -> PreTrainedModel:
    return FAMILIES[family].build()


def renamed(plan: Plan, old: str, new: str) -> Plan:
    """A plan with another name for one of its modules."""
    changed = {"module": new, "parameter": f"{new}.weight"}
    modules = [
        item.model_copy(update=changed) if item.module == old else item for item in plan.modules
    ]
    return plan.model_copy(update={"modules": modules})
