"""`plan.json`: the public format of a plan, versioned, with a published JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hlscore.planning.allocation import Allocation, Decision, Totals
from hlscore.records import ScoreReport
from hlscore.scores.registry import find_score
from hlscore.scores.rows import remark

SCHEMA_VERSION: Literal[1] = 1
SCHEMA_FILE = "plan.schema.json"

FULL_LEARNING_RATE = 2e-5
LORA_LEARNING_RATE = 2e-4
_RATE_SOURCE = (
    "starting point, not measured on this model: LoRA's best rate is about 10 times that of "
    "full fine-tuning (Schulman et al., LoRA Without Regret, 2025); tune both"
)

# Scores carry no more digits than the arithmetic has: a plan stays the same where it should.
_DIGITS = 6


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PlanFingerprint(_Strict):
    """Identity of the candidate weights that the plan was made for."""

    structure: str = Field(description="SHA-256 over names and shapes of all candidates.")
    weights: str = Field(description="SHA-256 over sampled weights, rounded to bfloat16.")


class PlanModel(_Strict):
    """The model that the plan is for."""

    name: str = Field(description="Hub id, directory or built-in name, as given.")
    revision: str | None = Field(description="Commit hash of a hub model.")
    architecture: str = Field(description="Class name, such as LlamaForCausalLM.")
    model_type: str = Field(description="model_type of the configuration.")
    params: int = Field(ge=0, description="All parameters, tied ones counted once.")
    fingerprint: PlanFingerprint


class PlanBudget(_Strict):
    """The budget asked for and what the plan makes of it."""

    asked: str = Field(description="As given, such as 0.1 or 0.1p.")
    unit: Literal["modules", "parameters"] = Field(description="What the share is of.")
    share: float = Field(gt=0, le=1, description="Share of the candidates asked for.")
    realized_module_share: float = Field(
        ge=0, le=1, description="Modules in full / candidate modules."
    )
    realized_parameter_share: float = Field(
        ge=0, le=1, description="Parameters in full / parameters of all candidates."
    )


class PlanScore(_Strict):
    """The score that decided."""

    name: str
    formula: str
    unit: str


class PlanLora(_Strict):
    """LoRA settings of the modules that are not trained in full."""

    rank: int = Field(ge=1)
    alpha: int = Field(ge=1)


class PlanTotals(_Strict):
    """What the plan adds up to; parameters unless a name says modules."""

    candidate_modules: int = Field(ge=0)
    full_modules: int = Field(ge=0)
    lora_modules: int = Field(ge=0)
    candidate_params: int = Field(ge=0)
    full_params: int = Field(ge=0)
    lora_params: int = Field(ge=0)
    trained_params: int = Field(ge=0)
    plain_lora_params: int = Field(ge=0, description="LoRA of the same rank on every candidate.")
    model_params: int = Field(ge=0)


class PlanStability(_Strict):
    """How far the choice depends on the probe examples that were drawn."""

    mean_reselection: float | None = Field(
        description="Mean share of bootstrap resamples that choose a chosen module again."
    )
    borderline_modules: int | None = Field(
        description="Modules chosen in more than 10 % and less than 90 % of the resamples."
    )


class PlanRate(_Strict):
    """A suggested learning rate."""

    value: float = Field(gt=0)
    source: str


class PlanRates(_Strict):
    """Suggested learning rates per group, for AdamW."""

    full: PlanRate
    lora: PlanRate


class PlanModule(_Strict):
    """What to do with one module. Modules that are not listed stay frozen."""

    position: int = Field(ge=1, description="Place by the plan's score, 1 is the highest.")
    module: str = Field(description="Fully qualified name.")
    parameter: str = Field(description="Fully qualified name of the weight.")
    mode: Literal["full", "lora", "frozen"]
    rank: int | None = Field(description="LoRA rank; null unless mode is lora.")
    alpha: int | None = Field(description="LoRA alpha; null unless mode is lora.")
    score: float | None = Field(description="Value of the plan's score.")
    selection_probability: float | None = Field(
        description="Share of bootstrap resamples in which the module is trained in full."
    )
    layer: int | None = Field(description="Index of the decoder block.")
    kind: str = Field(description="Last part of the name.")
    matrices: int = Field(ge=1, description="1, or the number of fused experts.")
    out_features: int = Field(ge=1)
    in_features: int = Field(ge=1)
    params: int = Field(ge=1, description="Parameters of weight and bias.")
    trained_params: int = Field(ge=0, description="Parameters that the mode trains.")
    remark: str = Field(description="Anything the reader should know; mostly empty.")


class PlanProbes(_Strict):
    """The probe examples that the scores come from."""

    source: str
    format: str
    hash: str
    examples: int
    counted_tokens: int
    mean_loss: float | None = Field(description="Nats per counted token.")


class PlanProvenance(_Strict):
    """Where the numbers come from."""

    hlscore_version: str
    seed: int
    estimator: str
    device: str
    dtype: str
    versions: dict[str, str]
    probes: PlanProbes
    settings: dict[str, object] = Field(description="Full settings of the run that scored.")


class Plan(_Strict):
    """A module plan: full fine-tuning for a few modules, LoRA for the others."""

    schema_version: Literal[1]
    model: PlanModel
    budget: PlanBudget
    score: PlanScore
    lora: PlanLora
    totals: PlanTotals
    stability: PlanStability
    learning_rates: PlanRates
    modules: list[PlanModule]
    notes: list[str]
    provenance: PlanProvenance


def make_plan(report: ScoreReport, allocation: Allocation) -> Plan:
    """Put an allocation into the public format.

    Args:
        report: The scores that it was made from.
        allocation: The decisions.

    Returns:
        The plan. Equal inputs give equal plans: no time or host name is in it.
    """
    settings, totals = allocation.settings, allocation.totals
    score = find_score(settings.score)
    return Plan(
        schema_version=SCHEMA_VERSION,
        model=_model(report),
        budget=_budget(allocation, totals),
        score=PlanScore(name=score.name, formula=score.formula, unit=score.unit),
        lora=PlanLora(rank=settings.rank, alpha=settings.lora_alpha),
        totals=PlanTotals(**{name: getattr(totals, name) for name in PlanTotals.model_fields}),
        stability=PlanStability(
            mean_reselection=_rounded(allocation.mean_reselection),
            borderline_modules=allocation.borderline,
        ),
        learning_rates=PlanRates(
            full=PlanRate(value=FULL_LEARNING_RATE, source=_RATE_SOURCE),
            lora=PlanRate(value=LORA_LEARNING_RATE, source=_RATE_SOURCE),
        ),
        modules=[_module(item, allocation) for item in allocation.decisions],
        notes=[*report.probes.notes, *allocation.notes],
        provenance=_provenance(report),
    )


def plan_text(plan: Plan) -> str:
    """Write a plan as indented JSON in the order of the schema."""
    return (
        json.dumps(plan.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
        + "\n"
    )


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan to a file."""
    path.write_text(plan_text(plan), encoding="utf-8")


def plan_schema() -> dict[str, object]:
    """JSON Schema of `plan.json`, made from the classes above."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:hlscore:plan:{SCHEMA_VERSION}",
    }
    return {**schema, **Plan.model_json_schema()}


def _model(report: ScoreReport) -> PlanModel:
    model = report.model
    return PlanModel(
        name=model.model,
        revision=model.revision,
        architecture=model.architecture,
        model_type=model.model_type,
        params=model.n_params,
        fingerprint=PlanFingerprint(
            structure=model.fingerprint.structure, weights=model.fingerprint.weights
        ),
    )


def _budget(allocation: Allocation, totals: Totals) -> PlanBudget:
    return PlanBudget(
        asked=allocation.budget.text,
        unit=allocation.budget.unit,
        share=allocation.budget.share,
        realized_module_share=_known(totals.full_modules / totals.candidate_modules),
        realized_parameter_share=_known(totals.full_params / totals.candidate_params),
    )


def _module(item: Decision, allocation: Allocation) -> PlanModule:
    row, lora = item.row, item.mode == "lora"
    return PlanModule(
        position=row.rank or 1,
        module=row.module,
        parameter=row.parameter,
        mode=item.mode,
        rank=allocation.settings.rank if lora else None,
        alpha=allocation.settings.lora_alpha if lora else None,
        score=_rounded(item.score),
        selection_probability=_rounded(row.selection_probability),
        layer=row.layer,
        kind=row.kind,
        matrices=row.matrices,
        out_features=row.out_features,
        in_features=row.in_features,
        params=row.n_params,
        trained_params=item.trained_params,
        remark=remark(row, row.matrices_reached, allocation.settings.rank),
    )


def _provenance(report: ScoreReport) -> PlanProvenance:
    run, probes = report.run, report.probes
    return PlanProvenance(
        hlscore_version=run.hlscore_version,
        seed=run.seed,
        estimator=run.estimator,
        device=run.device,
        dtype=run.dtype,
        versions=dict(run.versions),
        probes=PlanProbes(
            source=probes.source,
            format=probes.format,
            hash=probes.hash,
            examples=probes.examples,
            counted_tokens=probes.counted_tokens,
            mean_loss=_rounded(probes.mean_loss),
        ),
        settings=dict(run.settings),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else _known(value)


def _known(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
