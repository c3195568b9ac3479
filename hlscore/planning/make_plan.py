"""From a score report and a budget to a plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from hlscore.artifacts.plan import (
    LARGEST_COUNT,
    SCHEMA_VERSION,
    Plan,
    PlanCoverage,
    PlanLora,
    PlanMemory,
    PlanModel,
    PlanModule,
    PlanProbes,
    PlanProvenance,
    PlanScore,
    PlanSkipped,
    PlanSolver,
    significant,
)
from hlscore.errors import ArtifactError, UsageError
from hlscore.planning.allocation import choose_ranks, choose_uniform
from hlscore.planning.baselines import choose_baseline
from hlscore.planning.memory import Choice, memory_use
from hlscore.planning.notes import plan_notes
from hlscore.planning.parts import budget_of, stability_of, suggested_rates, totals_of
from hlscore.planning.problem import Problem, parse_lock, problem_of
from hlscore.records import ScoreReport
from hlscore.scores.registry import SCORES
from hlscore.scores.rows import remark, standard_error
from hlscore.settings import PlanSettings, build


@contextmanager
def plan_values() -> Iterator[None]:
    """Refuse values of a report that no plan can hold."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"The scores are damaged: a plan cannot hold their '{place}': {first['msg']}.",
            hint="Write them again with `hlscore rank`.",
        ) from error


@plan_values()
def make_plan(report: ScoreReport, settings: PlanSettings) -> Plan:
    """The plan that settings make from scores.

    Returns:
        The plan. Equal inputs give equal plans: no time or host name is in it.
    """
    problem = problem_of(report, settings)
    rows, score, baseline = problem.rows, problem.score, settings.baseline
    if baseline is not None:
        solution = choose_baseline(problem, baseline)
    else:
        solution = choose_ranks(problem) if settings.ranks else choose_uniform(problem)

    use = memory_use(report.model, solution.choices, settings.memory)
    if use.total_bytes > LARGEST_COUNT:
        raise UsageError(
            "The training memory is more bytes than a plan can hold.",
            hint="Use a smaller --train-batch or --train-length.",
        )
    trained = report.run.movement == "update"
    memory = PlanMemory(**asdict(settings.memory), **asdict(use), total_bytes=use.total_bytes)
    lora = PlanLora(
        rank=settings.rank, alpha=settings.lora_alpha, ranks=sorted(set(settings.ranks))
    )
    modules = [
        PlanModule(
            **_copied(PlanModule, row)
            | {
                "position": row.rank or 1,
                "mode": choice.mode,
                "rank": choice.rank or None,
                "alpha": lora.alpha_at(choice.rank) if choice.rank else None,
                "locked": row.module in problem.locks,
                "score": _rounded(value),
                "stderr": _rounded(standard_error(drawn)),
                # A count over a count, the same on every machine.
                "selection_probability": share,
                "params": row.n_params,
                "trained_params": choice.trained_params,
                "remark": remark(row, choice.rank or settings.rank, trained=trained),
            }
        )
        for row, value, choice, drawn, share in zip(
            rows,
            problem.values.tolist(),
            solution.choices,
            problem.replicates,
            solution.probability or [None] * len(rows),
            strict=True,
        )
    ]

    method = baseline or "score"
    spending = budget_of(
        problem.budget, modules, memory, with_ranks=bool(settings.ranks), method=method
    )
    # Modules whose score lies above zero with 95 % confidence; unknown without intervals.
    lows = [row.hls_ci_low for row in rows if row.hls_ci_low is not None]
    of_run = score.name == "hls" and settings.rank == report.run.rank
    clear = sum(low > 0 for low in lows) if lows and of_run else None
    covered = _coverage(problem, solution.choices)
    scale = max(abs(solution.bound), abs(solution.value))
    return Plan(
        schema_version=SCHEMA_VERSION,
        model=model_of(report),
        method=method,
        budget=spending,
        settings=settings,
        solver=PlanSolver(
            name=solution.solver,
            value=significant(solution.value),
            gap=significant(max(0.0, solution.bound - solution.value) / scale if scale else 0.0),
        ),
        score=PlanScore(name=score.name, formula=score.formula, unit=score.unit_in(report.run)),
        lora=lora,
        totals=totals_of(modules, settings.rank, report.model.n_params),
        memory=memory,
        coverage=covered,
        stability=stability_of(modules, clear=clear),
        learning_rates=suggested_rates(report.probes.objective),
        modules=modules,
        skipped=[
            PlanSkipped(**_copied(PlanSkipped, row)) for row in report.rows if not row.is_candidate
        ],
        notes=[
            *report.model.notes,
            *report.probes.notes,
            *plan_notes(problem, solution, covered, spent=spending.spent),
        ],
        provenance=provenance_of(report),
    )


def run_settings(report: ScoreReport, given: Mapping[str, Any]) -> PlanSettings:
    """Plan settings that were given by name, with the score and the rank of a run by default."""
    return build(PlanSettings, {"score": report.run.score, "rank": report.run.rank} | dict(given))


def replan(plan: Plan, report: ScoreReport, **changes: Any) -> Plan:
    """Make a plan again from scores, with some of its settings changed.

    Locks that match no module are left out; with another rank alpha has its default.
    """
    settings = plan.settings
    if changes.get("rank", settings.rank) != settings.rank:
        changes = {"alpha": None} | changes
    names = [row.module for row in report.candidates]
    locks = tuple(lock for lock in settings.locks if parse_lock(lock).matches(names))
    return make_plan(report, replace(settings, **({"locks": locks} | changes)))


def model_of(report: ScoreReport) -> PlanModel:
    """The model of a report in the form that a plan has."""
    model = report.model
    return PlanModel(**_copied(PlanModel, model) | {"name": model.model, "params": model.n_params})


def provenance_of(report: ScoreReport) -> PlanProvenance:
    """Where the numbers of a report come from in the form that a plan has."""
    run, probes, drawn = report.run, report.probes, report.probes.rollouts
    values = _copied(PlanProbes, probes) | {"mean_loss": _rounded(probes.mean_loss)}
    if drawn is not None:
        values |= {
            "completions": drawn.completions,
            "mean_reward": _rounded(drawn.mean_reward),
            "silent_prompts": drawn.silent,
        }
    return PlanProvenance(
        **_copied(PlanProvenance, run)
        | {
            "versions": dict(run.versions),
            "probes": PlanProbes(**values),
            "settings": dict(run.settings),
        }
    )


def _coverage(problem: Problem, choices: Sequence[Choice]) -> PlanCoverage | None:
    """Shares of the energy of all candidates that LoRA of the plan's rank and the plan follow.

    LoRA follows the best approximation of its rank, full fine-tuning everything. `None` where
    nothing was probed, or a curve does not hold a rank.
    """
    tail, rank = SCORES["tail"].compute, problem.settings.rank
    whole = left_by_lora = left_by_plan = 0.0
    for choice, row in zip(choices, problem.rows, strict=True):
        energy, lora = row.grad_energy, tail(row, rank)
        plan = {"full": 0.0, "frozen": energy}.get(choice.mode, tail(row, choice.rank))
        if energy is None or lora is None or plan is None:
            return None
        whole += energy
        left_by_lora += lora
        left_by_plan += plan
    if whole <= 0:
        return None
    of_updates = problem.report.run.scores_updates
    lora, plan = (
        significant(min(1.0, max(0.0, 1 - left / whole))) for left in (left_by_lora, left_by_plan)
    )
    return PlanCoverage(of="update" if of_updates else "gradient", lora=lora, plan=plan)


def _copied(kind: type[BaseModel], source: object) -> dict[str, Any]:
    """Fields of a part of a plan that a record has under the same name."""
    return {name: getattr(source, name) for name in kind.model_fields if hasattr(source, name)}


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else significant(value)
