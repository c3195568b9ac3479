"""From an allocation to a plan in the public format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from hlscore.artifacts.plan import (
    LARGEST_COUNT,
    SCHEMA_VERSION,
    Plan,
    PlanBudget,
    PlanCoverage,
    PlanFingerprint,
    PlanLora,
    PlanMemory,
    PlanModel,
    PlanModule,
    PlanProbes,
    PlanProvenance,
    PlanRate,
    PlanRates,
    PlanScore,
    PlanSkipped,
    PlanSolver,
    PlanStability,
    PlanTotals,
    significant,
)
from hlscore.errors import UsageError
from hlscore.planning.allocation import Allocation, Decision, allocate
from hlscore.planning.locks import matches
from hlscore.planning.rates import rate_source, suggested_rates
from hlscore.records import ScoreReport
from hlscore.scores.registry import find_score
from hlscore.scores.rows import remark
from hlscore.settings import PlanSettings, build


def make_plan(report: ScoreReport, allocation: Allocation) -> Plan:
    """Put an allocation into the public format.

    Returns:
        The plan. Equal inputs give equal plans: no time or host name is in it.
    """
    settings, totals = allocation.settings, allocation.totals
    score = find_score(settings.score)
    full_rate, lora_rate = suggested_rates(report.probes.objective)
    source, covered = rate_source(report.probes.objective), allocation.coverage
    return Plan(
        schema_version=SCHEMA_VERSION,
        model=model_of(report),
        method=settings.baseline or "score",
        budget=_budget(allocation),
        settings=settings,
        solver=PlanSolver(
            name=allocation.picks.solver,
            value=significant(allocation.picks.value),
            gap=significant(allocation.picks.gap),
        ),
        score=PlanScore(name=score.name, formula=score.formula, unit=score.unit_in(report.run)),
        lora=PlanLora(
            rank=settings.rank, alpha=settings.lora_alpha, ranks=sorted(set(settings.ranks))
        ),
        totals=PlanTotals(**{name: getattr(totals, name) for name in PlanTotals.model_fields}),
        memory=_memory(allocation),
        coverage=None
        if covered is None
        else PlanCoverage(
            of=covered.of, lora=significant(covered.lora), plan=significant(covered.plan)
        ),
        stability=PlanStability(
            mean_reselection=_rounded(allocation.mean_reselection),
            borderline_modules=allocation.borderline,
            clear_modules=allocation.clear,
        ),
        learning_rates=PlanRates(
            full=PlanRate(value=full_rate, source=source),
            lora=PlanRate(value=lora_rate, source=source),
        ),
        modules=[_module(item, allocation) for item in allocation.decisions],
        skipped=[
            PlanSkipped(**{name: getattr(row, name) for name in PlanSkipped.model_fields})
            for row in report.rows
            if not row.is_candidate
        ],
        notes=[*report.model.notes, *report.probes.notes, *allocation.notes],
        provenance=provenance_of(report),
    )


def planned(report: ScoreReport, settings: PlanSettings) -> Plan:
    """The plan that settings make from scores."""
    return make_plan(report, allocate(report, settings))


def run_settings(report: ScoreReport, given: Mapping[str, Any]) -> PlanSettings:
    """Plan settings that were given by name, with the score and the rank of a run by default."""
    return build(PlanSettings, {"score": report.run.score, "rank": report.run.rank} | dict(given))


def replan(plan: Plan, report: ScoreReport, **changes: Any) -> Plan:
    """Make a plan again from scores, with some of its settings changed.

    Locks that match none of the modules are left out: the report may be of a model without them.
    With another rank the default alpha is that of the new rank.
    """
    settings = plan.settings
    if changes.get("rank", settings.rank) != settings.rank:
        changes = {"alpha": None} | changes
    names = [row.module for row in report.candidates]
    locks = tuple(lock for lock in settings.locks if matches(lock, names))
    return planned(report, replace(settings, **({"locks": locks} | changes)))


def model_of(report: ScoreReport) -> PlanModel:
    """The model of a report in the form that a plan has."""
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


def _budget(allocation: Allocation) -> PlanBudget:
    totals, budget = allocation.totals, allocation.budget
    return PlanBudget(
        asked=budget.text,
        unit=budget.unit,
        limit=allocation.picks.limit,
        counts=allocation.picks.counts,
        spent=allocation.picks.spent,
        trained_limit=allocation.trained_limit,
        realized_module_share=significant(totals.full_modules / totals.candidate_modules),
        realized_parameter_share=significant(totals.full_params / totals.candidate_params),
    )


def _memory(allocation: Allocation) -> PlanMemory:
    settings, use = allocation.settings.memory, allocation.memory
    if use.total_bytes > LARGEST_COUNT:
        raise UsageError(
            "The training memory is more bytes than a plan can hold.",
            hint="Use a smaller --train-batch or --train-length.",
        )
    return PlanMemory(**asdict(settings), **asdict(use), total_bytes=use.total_bytes)


def _module(item: Decision, allocation: Allocation) -> PlanModule:
    row, settings = item.row, allocation.settings
    rank = item.rank or None
    return PlanModule(
        position=row.rank or 1,
        module=row.module,
        parameter=row.parameter,
        mode=item.mode,
        rank=rank,
        alpha=None if rank is None else settings.alpha_at(rank),
        locked=item.locked,
        score=_rounded(item.score),
        selection_probability=_rounded(row.selection_probability),
        layer=row.layer,
        kind=row.kind,
        block=row.block,
        form=row.form,
        storage=row.storage,
        matrices=row.matrices,
        out_features=row.out_features,
        in_features=row.in_features,
        params=row.n_params,
        trained_params=item.trained_params,
        remark=remark(
            row, row.matrices_reached, rank or settings.rank, of_updates=allocation.of_updates
        ),
    )


def provenance_of(report: ScoreReport) -> PlanProvenance:
    """Where the numbers of a report come from in the form that a plan has."""
    run, probes = report.run, report.probes
    drawn = probes.rollouts
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
            objective=probes.objective,
            loss_type=probes.loss_type,
            loss_on=probes.loss_on,
            hash=probes.hash,
            examples=probes.examples,
            completions=None if drawn is None else drawn.completions,
            mean_reward=None if drawn is None else _rounded(drawn.mean_reward),
            silent_prompts=None if drawn is None else drawn.silent,
            counted_tokens=probes.counted_tokens,
            mean_loss=_rounded(probes.mean_loss),
        ),
        settings=dict(run.settings),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else significant(value)
