"""From gradient statistics to scored and ranked report rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hlscore.reasons import UNMOVED, UNREACHED
from hlscore.records import Candidate, GradientStatistics, ModuleRow, WeightStatistics
from hlscore.scores.registry import SCORES, score_of
from hlscore.scores.score import Score
from hlscore.scores.stratified import stratified_scores

CONFIDENCE = 0.95


def build_rows(
    modules: Sequence[Candidate],
    statistics: Mapping[str, GradientStatistics],
    *,
    ranks: tuple[int, ...],
    rank: int,
    seed: int,
    weights: Mapping[str, WeightStatistics] | None = None,
    of_updates: bool = False,
) -> tuple[ModuleRow, ...]:
    """Make the rows of a report, not yet ordered.

    Args:
        statistics: Statistics of each candidate, by module name.
        weights: Statistics of the weight of each candidate, where they were asked for.
        of_updates: Whether a matrix of zeros is a weight that a training did not change, rather
            than one that no probe token reached.

    Returns:
        One row per module, in module order.
    """
    control = stratified_scores([item for item in modules if not item.skipped], seed=seed)
    rows = []
    for item in modules:
        if item.skipped:
            rows.append(_skipped_row(item))
            continue
        row = _probed_row(item, statistics[item.module], ranks, rank, of_updates=of_updates)
        found = None if weights is None else weights[item.module]
        rows.append(_with_scores(row, found, ranks, rank, control[item.module]))
    return tuple(rows)


def build_weight_rows(
    modules: Sequence[Candidate],
    weights: Mapping[str, WeightStatistics],
    *,
    ranks: tuple[int, ...],
    rank: int,
    seed: int,
) -> tuple[ModuleRow, ...]:
    """Make the rows of a report on the weights alone, not yet ordered.

    Args:
        weights: Statistics of the weight of each candidate, by module name.

    Returns:
        One row per module, in module order.
    """
    control = stratified_scores([item for item in modules if not item.skipped], seed=seed)
    rows = []
    for item in modules:
        if item.skipped:
            rows.append(_skipped_row(item))
            continue
        found = weights[item.module]
        row = ModuleRow(
            **_identity(item),
            rank=None,
            matrices_reached=None,
            weight_norm=found.weight_norm,
            reason=remark(item, None, rank),
        )
        rows.append(_with_scores(row, found, ranks, rank, control[item.module]))
    return tuple(rows)


def _with_scores(
    row: ModuleRow,
    weight: WeightStatistics | None,
    ranks: tuple[int, ...],
    rank: int,
    control: float,
) -> ModuleRow:
    """Fill in what the weight tells and the control, then the column of every score."""
    if weight is not None:
        row = row.changed(
            snr=weight.snr,
            kappa=weight.inverse_condition,
            condition_number=weight.condition_number,
            spectral_ranks=ranks if weight.spectral_curve else (),
            spectral_curve=weight.spectral_curve,
            reason="; ".join(text for text in (row.reason, weight.remark) if text),
        )
    row = row.changed(random=control)
    return row.changed(**{name: score.compute(row, rank) for name, score in SCORES.items()})


def order_rows(rows: Sequence[ModuleRow], score: Score, rank: int) -> tuple[ModuleRow, ...]:
    """Order rows by a score, the highest first, and number them; skipped rows go last.

    Returns:
        The same rows with their new places; ties go by name.
    """
    candidates = [row for row in rows if row.is_candidate]
    values = {row.module: score_of(row, score, rank) for row in candidates}

    def place(row: ModuleRow) -> tuple[float, str]:
        value = values[row.module]
        return (float("inf") if value is None else -value, row.module)

    ordered = [
        row if row.rank == number else row.changed(rank=number)
        for number, row in enumerate(sorted(candidates, key=place), start=1)
    ]
    skipped = [row.changed(rank=None) for row in rows if not row.is_candidate]
    return (*ordered, *skipped)


def _probed_row(
    item: Candidate,
    found: GradientStatistics,
    ranks: tuple[int, ...],
    rank: int,
    *,
    of_updates: bool,
) -> ModuleRow:
    spanned = rank >= item.max_rank
    at = ranks.index(rank)
    tail = 0.0 if spanned else found.tail_curve[at]
    reached = found.matrices_reached > 0
    low, high = interval(found.hls_replicates)
    row = ModuleRow(
        **_identity(item),
        rank=None,
        matrices_reached=found.matrices_reached,
        hls_stderr=standard_error(found.hls_replicates),
        hls_ci_low=low,
        hls_ci_high=high,
        hls_error=0.0 if spanned else found.hls_errors[at],
        taylor_mean=found.taylor_mean,
        taylor=found.taylor,
        grad_energy=found.grad_energy.value,
        head_energy=found.grad_energy.value - tail,
        tail_energy=tail,
        residual_ratio=tail / found.grad_energy.value if reached else None,
        stable_rank=found.grad_energy.value / found.top_energy.value if reached else None,
        effective_rank=found.effective_rank,
        rank_for_90=None if found.rank_for_90 is None else int(found.rank_for_90.value),
        halves_norm=found.halves_norm,
        weight_norm=found.weight_norm,
        curve_ranks=ranks,
        tail_curve=found.tail_curve,
        tail_curve_errors=found.tail_errors,
        hls_curve=found.hls_curve,
        hls_curve_errors=found.hls_errors,
        l1_adam_curve=found.l1_adam_curve,
        hls_replicates=found.hls_replicates,
        tail_replicates=found.tail_replicates,
        grad_norm_replicates=found.grad_norm_replicates,
        status="scored" if reached else "unreached",
        reason=remark(item, found.matrices_reached, rank, of_updates=of_updates),
    )
    errors = _errors(found, tail, 0.0 if spanned else found.tail_errors[at])
    return row.changed(**errors)


def _errors(found: GradientStatistics, tail: float, tail_error: float) -> dict[str, float | None]:
    """Errors of derived columns, carried over to first order from those of the energies."""
    energy, top = found.grad_energy, found.top_energy
    reached = found.matrices_reached > 0
    norm = found.weight_norm
    ratio = tail / energy.value if reached else 0.0
    return {
        "grad_energy_error": energy.error,
        "head_energy_error": math.hypot(energy.error, tail_error),
        "tail_energy_error": tail_error,
        "residual_ratio_error": math.hypot(tail_error, ratio * energy.error) / energy.value
        if reached
        else None,
        "stable_rank_error": (energy.value / top.value)
        * math.hypot(energy.error / energy.value, top.error / top.value)
        if reached
        else None,
        "rank_for_90_error": None if found.rank_for_90 is None else found.rank_for_90.error,
        "rgn_error": energy.error / (2 * math.sqrt(energy.value) * norm)
        if reached and norm
        else None,
    }


def _skipped_row(item: Candidate) -> ModuleRow:
    return ModuleRow(
        **_identity(item),
        rank=None,
        matrices_reached=None,
        status="skipped",
        reason=item.reason,
    )


def _identity(item: Candidate) -> dict[str, Any]:
    names = (
        "module", "parameter", "layer", "kind", "block", "matrices", "out_features",
        "in_features", "n_params", "form", "storage", "left_out", "tied_to",
    )  # fmt: skip
    return {name: getattr(item, name) for name in names}


def remark(
    item: Candidate | ModuleRow,
    matrices_reached: int | None,
    rank: int,
    *,
    of_updates: bool = False,
) -> str:
    """What a reader should know of a module at a LoRA rank; mostly nothing.

    Args:
        matrices_reached: How many of its matrices have a gradient; `None` without probes.
        of_updates: Whether the others are weights that no finished training changed.
    """
    if matrices_reached == 0:
        return UNMOVED if of_updates else UNREACHED
    remarks = []
    if matrices_reached is not None and matrices_reached < item.matrices:
        missed = item.matrices - matrices_reached
        what = "no training changed" if of_updates else "no probe token reached"
        remarks.append(f"{what} {missed} of {item.matrices} experts")
    if rank >= item.max_rank:
        remarks.append(f"LoRA of rank {rank} spans the whole matrix (min side {item.max_rank})")
    return "; ".join(remarks)


def standard_error(replicates: Sequence[float]) -> float | None:
    """Standard error of a score from its replicates; `None` where there are fewer than two."""
    return float(np.std(replicates, ddof=1)) if len(replicates) > 1 else None


def interval(replicates: Sequence[float]) -> tuple[float | None, float | None]:
    """Ends of the 95 % interval of a score from its replicates.

    Returns:
        Lower and upper end; `None` where there are fewer than two replicates.
    """
    if len(replicates) < 2:
        return None, None
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, (outside, 1 - outside))
    return float(low), float(high)
