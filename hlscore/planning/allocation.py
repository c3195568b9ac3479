"""From a score report and a budget to a decision for every module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hlscore.errors import ArtifactError, UsageError
from hlscore.planning.baselines import choose_baseline, choose_for_score
from hlscore.planning.budget import Budget, parse_budget
from hlscore.planning.costs import full_params, lora_params
from hlscore.planning.coverage import (
    Coverage,
    coverage,
    coverage_notes,
    largest_rank_notes,
)
from hlscore.planning.locks import locks_of, parse_lock
from hlscore.planning.memory import Choice, MemoryUse, Mode, memory_use
from hlscore.planning.options import check_curve, check_lock, is_unreached, stays_frozen
from hlscore.planning.problem import Picks, Problem, free_bytes
from hlscore.planning.ranked import trained_limit
from hlscore.planning.uniform import replicates_of
from hlscore.reasons import tied_modules
from hlscore.records import Candidate, ModelIdentity, ModuleRow, ScoreReport
from hlscore.scores.registry import Score, find_score, score_of
from hlscore.scores.rows import order_rows
from hlscore.settings import PlanSettings

BORDERLINE = (0.1, 0.9)
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a plan does with one module.

    Attributes:
        row: The module, with its place by the plan's score.
        mode: `full`, `lora` or `frozen`.
        rank: LoRA rank; 0 unless the mode is `lora`.
        locked: Whether the mode was asked for.
        score: Value of the plan's score; `None` where it cannot be had.
        stderr: Its bootstrap standard error; `None` without replicates at this rank.
        trained_params: Parameters that the mode trains.
    """

    row: ModuleRow
    mode: Mode
    rank: int
    locked: bool
    score: float | None
    stderr: float | None
    trained_params: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a plan adds up to. All counts are parameters unless they say modules.

    Attributes:
        candidate_modules: Modules that could be trained in full.
        full_modules: Modules trained in full.
        lora_modules: Modules trained with LoRA.
        frozen_modules: Candidates that are not trained.
        candidate_params: Parameters of all candidates.
        full_params: Parameters of the modules trained in full.
        lora_params: Parameters of the LoRA adapters.
        trained_params: `full_params + lora_params`.
        plain_lora_params: What LoRA of the plan's rank on every candidate trains.
        model_params: All parameters of the model.
    """

    candidate_modules: int
    full_modules: int
    lora_modules: int
    frozen_modules: int
    candidate_params: int
    full_params: int
    lora_params: int
    trained_params: int
    plain_lora_params: int
    model_params: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A whole plan.

    Attributes:
        settings: What was asked for.
        of_updates: Whether the scores are of finished trainings.
        budget: The budget, parsed.
        picks: What was chosen, against which limit, and how.
        trained_limit: Most parameters that may be trained, where a budget of modules sets that too.
        decisions: One per candidate, the best score first.
        totals: What they add up to.
        memory: Training memory, by use.
        coverage: What LoRA of the plan's rank and the plan follow; `None` without probes.
        mean_reselection: Mean selection probability of the chosen modules; `None` without
            bootstrap replicates of the score at this rank.
        borderline: Modules whose selection probability lies between 0.1 and 0.9.
        clear: Modules whose score lies above zero with 95 % confidence; `None` without intervals
            of the score at this rank.
        notes: Remarks for the reader.
    """

    settings: PlanSettings
    of_updates: bool
    budget: Budget
    picks: Picks
    trained_limit: int | None
    decisions: tuple[Decision, ...]
    totals: Totals
    memory: MemoryUse
    coverage: Coverage | None
    mean_reselection: float | None
    borderline: int | None
    clear: int | None
    notes: tuple[str, ...]


def check_plan_settings(settings: PlanSettings) -> None:
    """Refuse a bad score name, budget or lock before a model is loaded."""
    score = find_score(settings.score)
    if settings.ranks:
        check_curve(score)
    parse_budget(settings.budget)
    for lock in settings.locks:
        parse_lock(lock)


def check_plan_for(
    model: ModelIdentity, modules: Sequence[Candidate | ModuleRow], settings: PlanSettings
) -> None:
    """Refuse a budget or a lock that cannot work for a model, before it is probed."""
    candidates = [item for item in modules if not _skipped(item)]
    tied = tied_modules(modules)
    locks = locks_of(settings.locks, [item.module for item in candidates])
    for module, lock in locks.items():
        check_lock(module, lock, tied)
    budget = parse_budget(settings.budget)
    if not settings.ranks and len(locks) < len(candidates):
        budget.check_one_fits([item.n_params for item in candidates])
    if budget.unit == "bytes":
        free_bytes(model, budget, settings.memory)


def _skipped(item: Candidate | ModuleRow) -> bool:
    return item.skipped if isinstance(item, Candidate) else not item.is_candidate


def allocate(report: ScoreReport, settings: PlanSettings) -> Allocation:
    """Decide for every candidate of a report how it is trained."""
    problem = _problem(report, settings)
    picks = (
        choose_for_score(problem)
        if settings.baseline is None
        else choose_baseline(problem, settings.baseline)
    )
    decisions = _decisions(problem, picks)
    shares = [share for share in picks.probability if share is not None]
    kept = [
        share
        for share, item in zip(picks.probability, decisions, strict=True)
        if item.mode == "full" and share is not None
    ]
    choices = (Choice(row=item.row, mode=item.mode, rank=item.rank) for item in decisions)
    modes = {item.row.module: (item.mode, item.rank) for item in decisions}
    covered = coverage(
        problem.rows, modes, settings.rank, of="update" if report.run.scores_updates else "gradient"
    )
    return Allocation(
        settings=settings,
        of_updates=problem.of_updates,
        budget=problem.budget,
        picks=picks,
        trained_limit=trained_limit(problem)
        if settings.ranks and settings.baseline is None
        else None,
        decisions=decisions,
        totals=_totals(decisions, settings.rank, report.model.n_params),
        memory=memory_use(report.model, choices, settings.memory),
        coverage=covered,
        mean_reselection=_mean(kept) if shares else None,
        borderline=sum(BORDERLINE[0] < share < BORDERLINE[1] for share in shares)
        if shares
        else None,
        clear=_clear(problem),
        notes=(
            *coverage_notes(covered),
            *(_reward_notes(report, picks) if settings.baseline is None else ()),
            *_notes(problem, picks, stable=bool(shares)),
        ),
    )


def _problem(report: ScoreReport, settings: PlanSettings) -> Problem:
    score, budget = find_score(settings.score), parse_budget(settings.budget)
    if not report.candidates:
        raise ArtifactError("The report holds no candidate modules.")
    rows = order_rows(report.candidates, score, settings.rank)
    _check_values(rows, score, settings.rank)
    return Problem(
        model=report.model,
        rows=rows,
        seed=report.run.seed,
        run_rank=report.run.rank,
        of_updates=report.run.scores_trainings,
        score=score,
        budget=budget,
        locks=locks_of(settings.locks, [row.module for row in rows]),
        tied=tied_modules(report.rows),
        settings=settings,
    )


def _check_values(rows: Sequence[ModuleRow], score: Score, rank: int) -> None:
    if any(score.compute(row, rank) is not None for row in rows):
        return
    made = {
        "gradients": "rank with probes: without --data none",
        "whole gradients": "rank with probes and --estimator exact",
        "weights": "rank with --weight-scores, or with --data none",
        "nothing": "rank again",
    }
    raise UsageError(
        f"The report holds no value of '{score.name}'.",
        hint=f"Choose another --score, or {made[score.needs]}.",
    )


def _decisions(problem: Problem, picks: Picks) -> tuple[Decision, ...]:
    return tuple(
        Decision(
            row=row
            if row.selection_probability == share
            else row.changed(selection_probability=share),
            mode=chosen.mode,
            rank=chosen.rank,
            locked=row.module in problem.locks,
            score=score_of(row, problem.score, problem.settings.rank),
            stderr=stderr,
            trained_params=chosen.params,
        )
        for row, chosen, share, stderr in zip(
            problem.rows, picks.options, picks.probability, _stderrs(problem), strict=True
        )
    )


def _clear(problem: Problem) -> int | None:
    lows = [row.hls_ci_low for row in problem.rows]
    of_run = problem.score.name == "hls" and problem.settings.rank == problem.run_rank
    if not of_run or all(low is None for low in lows):
        return None
    return sum(low is not None and low > 0 for low in lows)


def _stderrs(problem: Problem) -> Sequence[float | None]:
    replicates = replicates_of(problem)
    if len(replicates[0]) < 2:
        return [None] * len(replicates)
    found: list[float] = np.std(np.array(replicates), axis=1, ddof=1).tolist()
    return found


def _totals(decisions: Sequence[Decision], rank: int, model_params: int) -> Totals:
    by_mode = {
        mode: [item for item in decisions if item.mode == mode]
        for mode in ("full", "lora", "frozen")
    }
    full, lora = (sum(item.trained_params for item in by_mode[mode]) for mode in ("full", "lora"))
    return Totals(
        candidate_modules=len(decisions),
        full_modules=len(by_mode["full"]),
        lora_modules=len(by_mode["lora"]),
        frozen_modules=len(by_mode["frozen"]),
        candidate_params=sum(full_params(item.row) for item in decisions),
        full_params=full,
        lora_params=lora,
        trained_params=full + lora,
        plain_lora_params=sum(lora_params(item.row, rank) for item in decisions),
        model_params=model_params,
    )


def _reward_notes(report: ScoreReport, picks: Picks) -> tuple[str, ...]:
    full = any(item.mode == "full" for item in picks.options)
    if report.probes.objective != "grpo" or not full:
        return ()
    return (
        "In trials with rewards (GRPO) on small models LoRA did not lag behind full fine-tuning: "
        "compare with --baseline lora-matched before you train this plan.",
    )


def _notes(problem: Problem, picks: Picks, *, stable: bool) -> tuple[str, ...]:
    settings, notes = problem.settings, _unreached_notes(problem)
    larger = [
        (row, item)
        for row, item in zip(problem.rows, picks.options, strict=True)
        if item.mode == "lora" and item.params >= row.n_params
    ]
    if larger:
        notes.append(
            f"LoRA trains {sum(item.params for _, item in larger):,} parameters in "
            f"{len(larger):,} of {len(problem.rows):,} modules whose weights are "
            f"{sum(row.n_params for row, _ in larger):,}: use a smaller --rank."
        )
    if settings.baseline is not None:
        notes.append(f"A baseline ({settings.baseline}), not the choice of a score.")
        if picks.spent > picks.limit:
            notes.append(f"It takes more than the budget of {problem.budget.text} allows.")
        return tuple(notes)
    if len(problem.locks) == len(problem.rows):
        return (*notes, "Every module is locked: nothing was chosen.")
    values = (score_of(row, problem.score, settings.rank) for row in problem.rows)
    missing = sum(value is None for value in values)
    if missing:
        notes.append(
            f"{missing:,} of {len(problem.rows):,} modules have no '{problem.score.name}' and come "
            "last; the reasons are in the report."
        )
    full = sum(item.mode == "full" for item in picks.options)
    short_of = problem.budget.unit == "modules" and full < picks.limit
    if not settings.ranks and (full == 0 or short_of):
        more = " More probe samples may show one." if problem.score.reads_gradients else ""
        start = "No module is" if full == 0 else f"Only {full} of the modules that fit are"
        notes.append(
            f"{start} trained in full: no other module has a positive {problem.score.name}.{more}"
        )
    silent = sum(
        item.mode == "frozen"
        and not stays_frozen(row, problem.tied)
        and row.module not in problem.locks
        for row, item in zip(problem.rows, picks.options, strict=True)
    )
    if settings.ranks and silent:
        notes.append(
            f"{silent:,} of {len(problem.rows):,} modules stay frozen: {problem.score.name} shows "
            "too little to gain there, or nothing above the noise. More probe samples may show "
            "some; --score tail, which counts noise too, leaves fewer out."
            if problem.score.reads_gradients
            else f"{silent:,} of {len(problem.rows):,} modules stay frozen."
        )
    if settings.ranks:
        adapters = [item.rank for item in picks.options if item.mode == "lora"]
        notes += largest_rank_notes(adapters, settings.ranks)
        notes.append(
            "Ranks are chosen by the energy of the gradient or update that they capture, to the "
            f"power {settings.value_power:g}. In trials on small models such plans were as good "
            "as one rank for all of equal cost on average, with hls often better, not always: "
            "compare with --baseline lora-matched, or try it out with `hlscore validate`."
        )
    elif not stable and not problem.score.reads_weights:
        notes.append(
            f"The stability of the choice is unknown: the report has no resamples of "
            f"'{problem.score.name}' at rank {settings.rank}."
        )
    frozen = sorted(row.module for row, item in zip(problem.rows, picks.options, strict=True)
                    if item.mode == "frozen" and row.module in problem.tied)  # fmt: skip
    if frozen:
        notes.append(f"{', '.join(frozen)} stays frozen: LoRA on a tied weight merges wrongly.")
    return tuple(notes)


def _unreached_notes(problem: Problem) -> list[str]:
    rows = [row for row in problem.rows if is_unreached(row) and row.module not in problem.locks]
    names = sorted(row.module for row in rows)
    if not names:
        return []
    what = "No training changed" if problem.of_updates else "No probe gradient reaches"
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return [
        f"{what} {', '.join(names[:_SHOWN])}{more}: such modules stay frozen unless --lock says "
        "otherwise."
    ]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
