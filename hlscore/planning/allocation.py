"""From a score report and a budget to a decision for every module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hlscore.errors import ArtifactError
from hlscore.planning.budget import Budget, parse_budget
from hlscore.planning.choice import choose, selection_probability
from hlscore.planning.costs import full_params, lora_params
from hlscore.records import ModuleRow, ScoreReport
from hlscore.scores.registry import Score, find_score, score_of
from hlscore.scores.rows import order_rows
from hlscore.settings import PlanSettings

Mode = Literal["full", "lora"]

BORDERLINE = (0.1, 0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a plan does with one module.

    Attributes:
        row: The module, with its place by the plan's score.
        mode: `full` or `lora`.
        score: Value of the plan's score; `None` where it cannot be had.
        stderr: Its bootstrap standard error; `None` without replicates at this rank.
        trained_params: Parameters that the mode trains.
    """

    row: ModuleRow
    mode: Mode
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
        candidate_params: Parameters of all candidates.
        full_params: Parameters of the modules trained in full.
        lora_params: Parameters of the LoRA adapters.
        trained_params: `full_params + lora_params`.
        plain_lora_params: What LoRA of the same rank on every candidate trains.
        model_params: All parameters of the model.
    """

    candidate_modules: int
    full_modules: int
    lora_modules: int
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
        budget: The budget, parsed.
        decisions: One per candidate, the best score first.
        totals: What they add up to.
        mean_reselection: Mean selection probability of the chosen modules; `None` without
            bootstrap replicates of the score at this rank.
        borderline: Modules whose selection probability lies between 0.1 and 0.9.
        notes: Remarks for the reader.
    """

    settings: PlanSettings
    budget: Budget
    decisions: tuple[Decision, ...]
    totals: Totals
    mean_reselection: float | None
    borderline: int | None
    notes: tuple[str, ...]


def check_plan_settings(settings: PlanSettings) -> None:
    """Refuse a bad score name or budget before a model is loaded.

    Args:
        settings: Budget and score.

    Raises:
        UsageError: Either cannot be used.
    """
    find_score(settings.score)
    parse_budget(settings.budget)


def allocate(report: ScoreReport, settings: PlanSettings) -> Allocation:
    """Decide for every candidate of a report whether it is trained in full or with LoRA.

    Args:
        report: Scores.
        settings: Budget, score, rank, alpha.

    Returns:
        The plan.

    Raises:
        UsageError: There is no such score, the report lacks the rank, or the budget is unusable.
        ArtifactError: The report holds no candidates.
    """
    score, budget = find_score(settings.score), parse_budget(settings.budget)
    if not report.candidates:
        raise ArtifactError("The report holds no candidate modules.")
    rows = order_rows(report.candidates, score, settings.rank)
    values = [score_of(row, score, settings.rank) for row in rows]
    params = np.array([full_params(row) for row in rows], dtype=np.int64)
    chosen = choose(np.array(values, dtype=np.float64), params, budget)
    replicates = _replicates(rows, score, report, settings)
    probability = _probability(replicates, params, budget)
    decisions = tuple(
        Decision(
            row=replace(row, selection_probability=share),
            mode="full" if full else "lora",
            score=value,
            stderr=float(np.std(drawn, ddof=1)) if len(drawn) > 1 else None,
            trained_params=full_params(row) if full else lora_params(row, settings.rank),
        )
        for row, value, full, share, drawn in zip(
            rows, values, chosen, probability, replicates, strict=True
        )
    )
    shares = [share for share in probability if share is not None]
    kept = [share for share, full in zip(probability, chosen, strict=True) if full]
    return Allocation(
        settings=settings,
        budget=budget,
        decisions=decisions,
        totals=_totals(decisions, settings.rank, report.model.n_params),
        mean_reselection=_mean(kept) if shares else None,
        borderline=sum(BORDERLINE[0] < share < BORDERLINE[1] for share in shares)
        if shares
        else None,
        notes=_notes(decisions, budget, params, score, settings, bool(shares)),
    )


def _replicates(
    rows: tuple[ModuleRow, ...], score: Score, report: ScoreReport, settings: PlanSettings
) -> list[tuple[float, ...]]:
    """Bootstrap replicates of each row; empty where the report has none for score and rank."""
    found = [score.replicates(row) for row in rows]
    other_rank = score.follows_rank and settings.rank != report.run.rank
    return [()] * len(rows) if other_rank or not all(found) else found


def _probability(
    replicates: list[tuple[float, ...]], params: NDArray[np.int64], budget: Budget
) -> list[float | None]:
    if not all(replicates):
        return [None] * len(replicates)
    table = np.array(replicates, dtype=np.float64)
    return [float(share) for share in selection_probability(table, params, budget)]


def _totals(decisions: tuple[Decision, ...], rank: int, model_params: int) -> Totals:
    full = [item for item in decisions if item.mode == "full"]
    lora = [item for item in decisions if item.mode == "lora"]
    full_sum = sum(item.trained_params for item in full)
    lora_sum = sum(item.trained_params for item in lora)
    return Totals(
        candidate_modules=len(decisions),
        full_modules=len(full),
        lora_modules=len(lora),
        candidate_params=sum(full_params(item.row) for item in decisions),
        full_params=full_sum,
        lora_params=lora_sum,
        trained_params=full_sum + lora_sum,
        plain_lora_params=sum(lora_params(item.row, rank) for item in decisions),
        model_params=model_params,
    )


def _notes(
    decisions: tuple[Decision, ...],
    budget: Budget,
    params: NDArray[np.int64],
    score: Score,
    settings: PlanSettings,
    stable: bool,
) -> tuple[str, ...]:
    notes = []
    full = sum(item.mode == "full" for item in decisions)
    if full == 0 or (budget.unit == "modules" and full < budget.limit(params.tolist())):
        start = "No module is" if full == 0 else f"Only {full} of the modules that fit are"
        notes.append(
            f"{start} trained in full: for the others {score.name} shows no gain above zero to "
            "buy. More probe samples may show one."
        )
    if not stable:
        notes.append(
            f"How stable the choice is cannot be told: the report holds no bootstrap of "
            f"'{score.name}' at rank {settings.rank}."
        )
    return tuple(notes)


def _mean(values: list[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
