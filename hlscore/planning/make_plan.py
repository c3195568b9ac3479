"""From a score report and a budget to a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from hlscore.artifacts.plan import (
    LARGEST_COUNT,
    SCHEMA_VERSION,
    Plan,
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
    significant,
)
from hlscore.errors import UsageError
from hlscore.planning.baselines import choose_baseline, choose_for_score
from hlscore.planning.coverage import coverage
from hlscore.planning.locks import matches
from hlscore.planning.memory import memory_use
from hlscore.planning.module_options import Option
from hlscore.planning.notes import plan_notes
from hlscore.planning.problem import Problem, Solution, problem_of
from hlscore.planning.ranked import trained_limit
from hlscore.planning.rates import rate_source, suggested_rates
from hlscore.planning.sums import budget_of, counted, stability_of, totals_of
from hlscore.planning.uniform import replicates_of
from hlscore.records import ScoreReport
from hlscore.scores.rows import remark
from hlscore.settings import PlanSettings, build

_COPIED = ("module", "parameter", "layer", "kind", "block", "form", "storage", "matrices",
           "out_features", "in_features")  # fmt: skip


def make_plan(report: ScoreReport, settings: PlanSettings) -> Plan:
    """The plan that settings make from scores.

    Returns:
        The plan. Equal inputs give equal plans: no time or host name is in it.
    """
    problem = problem_of(report, settings)
    solution = (
        choose_for_score(problem)
        if settings.baseline is None
        else choose_baseline(problem, settings.baseline)
    )
    lora = PlanLora(
        rank=settings.rank, alpha=settings.lora_alpha, ranks=sorted(set(settings.ranks))
    )
    modules = _modules(problem, solution, lora)
    memory = _memory(problem, solution.options)
    ranked = bool(settings.ranks) and settings.baseline is None
    budget = budget_of(
        problem.budget,
        counted(problem.budget, settings),
        modules,
        memory,
        trained_limit=trained_limit(problem) if ranked else None,
    )
    covered = coverage(
        problem.rows,
        solution.options,
        settings.rank,
        of="update" if report.run.scores_updates else "gradient",
    )
    full_rate, lora_rate = suggested_rates(report.probes.objective)
    source = rate_source(report.probes.objective)
    notes = plan_notes(problem, solution, covered, spent=budget.spent)
    return Plan(
        schema_version=SCHEMA_VERSION,
        model=model_of(report),
        method=settings.baseline or "score",
        budget=budget,
        settings=settings,
        solver=PlanSolver(
            name=solution.solver,
            value=significant(solution.value),
            gap=significant(solution.gap),
        ),
        score=PlanScore(
            name=problem.score.name,
            formula=problem.score.formula,
            unit=problem.score.unit_in(report.run),
        ),
        lora=lora,
        totals=totals_of(modules, settings.rank, report.model.n_params),
        memory=memory,
        coverage=None
        if covered is None
        else PlanCoverage(
            of=covered.of, lora=significant(covered.lora), plan=significant(covered.plan)
        ),
        stability=stability_of(modules, clear=_clear(problem)),
        learning_rates=PlanRates(
            full=PlanRate(value=full_rate, source=source),
            lora=PlanRate(value=lora_rate, source=source),
        ),
        modules=modules,
        skipped=[
            PlanSkipped(**{name: getattr(row, name) for name in PlanSkipped.model_fields})
            for row in report.rows
            if not row.is_candidate
        ],
        notes=[*report.model.notes, *report.probes.notes, *notes],
        provenance=provenance_of(report),
    )


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
    return make_plan(report, replace(settings, **({"locks": locks} | changes)))


def _modules(problem: Problem, solution: Solution, lora: PlanLora) -> list[PlanModule]:
    settings, of_updates = problem.settings, problem.report.run.scores_trainings
    shares = solution.probability or (None,) * len(problem.rows)
    modules = []
    for row, score, item, share, stderr in zip(
        problem.rows, problem.scores, solution.options, shares, _stderrs(problem), strict=True
    ):
        rank = item.rank or None
        found = PlanModule(
            **{name: getattr(row, name) for name in _COPIED},
            position=row.rank or 1,
            mode=item.mode,
            rank=rank,
            alpha=None if rank is None else lora.alpha_at(rank),
            locked=row.module in problem.locks,
            score=_rounded(score),
            stderr=_rounded(stderr),
            # A count over a count, the same on every machine.
            selection_probability=share,
            params=row.n_params,
            trained_params=item.params,
            unreached=row.status == "unreached",
            remark=remark(row, row.matrices_reached, rank or settings.rank, of_updates=of_updates),
        )
        modules.append(found)
    return modules


def _stderrs(problem: Problem) -> Sequence[float | None]:
    replicates = replicates_of(problem)
    if len(replicates[0]) < 2:
        return [None] * len(replicates)
    found: list[float] = np.std(np.array(replicates), axis=1, ddof=1).tolist()
    return found


def _memory(problem: Problem, options: Sequence[Option]) -> PlanMemory:
    settings = problem.settings.memory
    use = memory_use(problem.report.model, options, settings)
    if use.total_bytes > LARGEST_COUNT:
        raise UsageError(
            "The training memory is more bytes than a plan can hold.",
            hint="Use a smaller --train-batch or --train-length.",
        )
    return PlanMemory(**asdict(settings), **asdict(use), total_bytes=use.total_bytes)


def _clear(problem: Problem) -> int | None:
    """Modules whose score lies above zero with 95 % confidence; `None` without intervals."""
    lows = [row.hls_ci_low for row in problem.rows]
    of_run = problem.score.name == "hls" and problem.settings.rank == problem.report.run.rank
    if not of_run or all(low is None for low in lows):
        return None
    return sum(low is not None and low > 0 for low in lows)


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
        trial_rate=run.trial_rate,
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
