"""Orders of modules that can be compared: scores of a run, ranks of a score, runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hlscore.errors import UsageError
from hlscore.records import ScoreReport
from hlscore.scores.registry import SCORES, Score, find_score, replicates_at, score_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """One score of every candidate.

    Attributes:
        label: What sets it apart from those that it is compared with.
        score: Name of the score.
        rank: LoRA rank compared against.
        values: Score by module; `None` where it cannot be had.
        replicates: Resampled scores by module; empty where there are none at that rank.
        kinds: Kind of each module, with the block before it.
    """

    label: str
    score: str
    rank: int
    values: Mapping[str, float | None]
    replicates: Mapping[str, tuple[float, ...]]
    kinds: Mapping[str, str]

    @property
    def empty(self) -> bool:
        """Whether no module has a value."""
        return all(value is None for value in self.values.values())


def scores_of(report: ScoreReport, rank: int | None) -> list[Ranking]:
    """Every score of a run.

    Args:
        rank: LoRA rank; `None` for the run's own.

    Returns:
        One ranking per known score, those without values too.
    """
    rank = report.run.rank if rank is None else rank
    return [_ranking(report, score, rank, label=name) for name, score in SCORES.items()]


def ranks_of(report: ScoreReport, score: str | None, ranks: Sequence[int]) -> list[Ranking]:
    """One score of a run at several LoRA ranks.

    Args:
        score: Name of the score; `None` for the run's own.
    """
    chosen = find_score(score or report.run.score)
    if not chosen.follows_rank:
        known = ", ".join(name for name, item in SCORES.items() if item.follows_rank)
        raise UsageError(
            f"'{chosen.name}' is the same at every LoRA rank.", hint=f"Use --score {known}."
        )
    return [_ranking(report, chosen, rank, label=f"rank {rank}") for rank in ranks]


def run_ranking(report: ScoreReport, label: str, score: str | None, rank: int | None) -> Ranking:
    """The order that a run gives.

    Args:
        score: Name of the score; `None` for the run's own.
        rank: LoRA rank; `None` for the run's own.
    """
    chosen = find_score(score or report.run.score)
    try:
        found = _ranking(report, chosen, report.run.rank if rank is None else rank, label=label)
    except UsageError as error:
        raise UsageError(f"{label}: {error.message}", hint=error.hint) from error
    if found.empty:
        raise UsageError(
            f"{label} has no values of '{chosen.name}'.",
            hint="Choose another --score; `hlscore scores` says what each of them needs.",
        )
    return found


def _ranking(report: ScoreReport, score: Score, rank: int, *, label: str) -> Ranking:
    rows = report.candidates
    replicates = replicates_at(rows, score, rank, report.run.rank)
    there = bool(replicates) and bool(replicates[0])
    return Ranking(
        label=label,
        score=score.name,
        rank=rank,
        values={row.module: score_of(row, score, rank) for row in rows},
        replicates={row.module: own for row, own in zip(rows, replicates, strict=True)}
        if there
        else {},
        kinds={row.module: f"{row.block}.{row.kind}".lstrip(".") for row in rows},
    )
