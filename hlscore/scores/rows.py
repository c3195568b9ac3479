"""From gradient statistics to scored and ranked report rows."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from hlscore.records import Candidate, GradientStatistics, Matrix, ModuleRow, WeightStatistics
from hlscore.scores.registry import SCORES, Score, score_of

INTERVAL = (0.025, 0.975)  # the quantiles between which 95 % lie
_COLUMNS = {item.name for item in fields(ModuleRow)}


def build_rows(
    modules: Sequence[Candidate],
    *,
    ranks: tuple[int, ...],
    rank: int,
    seed: int,
    statistics: Mapping[str, GradientStatistics] | None = None,
    weights: Mapping[str, WeightStatistics] | None = None,
    trained: bool = False,
) -> tuple[ModuleRow, ...]:
    """Rows of a report in module order, not yet ordered by a score.

    Args:
        statistics: Statistics of each candidate, by module name; `None` without probes.
        weights: Statistics of the weight of each candidate; `None` where not asked for.
        trained: Whether the statistics are of finished trainings: a matrix of zeros is then one
            that no training changed.
    """
    control = stratified_scores([item for item in modules if not item.skipped], seed=seed)
    rows = []
    for item in modules:
        values = _columns(item) | {"rank": None, "matrices_reached": None}
        if item.skipped:
            row = ModuleRow(**values, status="skipped", reason=item.reason)
            rows.append(row.changed(**dict.fromkeys(SCORES)))
            continue
        values["random"] = control[item.module]
        if statistics is not None:
            found = statistics[item.module]
            values |= _gradient_columns(found, ranks, None if rank >= item.max_rank else rank)
        of_weight = ""
        if weights is not None:
            weight = weights[item.module]
            of_weight = weight.remark
            # The norm of the weight that was probed comes first.
            values = _columns(weight) | {"kappa": weight.inverse_condition} | values
            values["spectral_ranks"] = ranks if weight.spectral_curve else ()
        row = ModuleRow(**values)
        scores = {name: score.compute(row, rank) for name, score in SCORES.items()}
        remarks = filter(None, (remark(row, rank, trained=trained), of_weight))
        rows.append(row.changed(**scores, reason="; ".join(remarks)))
    return tuple(rows)


def _columns(source: Candidate | GradientStatistics | WeightStatistics) -> dict[str, Any]:
    """What a row says in the same words."""
    return {
        item.name: getattr(source, item.name) for item in fields(source) if item.name in _COLUMNS
    }


def _gradient_columns(
    found: GradientStatistics, ranks: tuple[int, ...], rank: int | None
) -> dict[str, Any]:
    """Columns from gradients or updates; errors of derived ones to first order.

    Args:
        ranks: Ranks of the curves.
        rank: LoRA rank compared against; `None` for one that spans the whole matrix.
    """
    tail = tail_error = hls_error = 0.0
    if rank is not None:
        at = ranks.index(rank)
        tail, tail_error = found.tail_curve[at], found.tail_errors[at]
        hls_error = found.hls_errors[at]
    energy, top, ninety = found.grad_energy, found.top_energy, found.rank_for_90
    low, high = interval(found.hls_replicates)
    columns = _columns(found) | {
        "curve_ranks": ranks,
        "hls_stderr": standard_error(found.hls_replicates),
        "hls_ci_low": low,
        "hls_ci_high": high,
        "hls_error": hls_error,
        "grad_energy": energy.value,
        "grad_energy_error": energy.error,
        "head_energy": energy.value - tail,
        "head_energy_error": math.hypot(energy.error, tail_error),
        "tail_energy": tail,
        "tail_energy_error": tail_error,
        "tail_curve_errors": found.tail_errors,
        "hls_curve_errors": found.hls_errors,
        "rank_for_90": None if ninety is None else int(ninety.value),
        "rank_for_90_error": None if ninety is None else ninety.error,
    }
    if not found.matrices_reached:
        return columns | {"status": "unreached"}
    ratio, stable_rank = tail / energy.value, energy.value / top.value
    columns |= {
        "residual_ratio": ratio,
        "residual_ratio_error": math.hypot(tail_error, ratio * energy.error) / energy.value,
        "stable_rank": stable_rank,
        "stable_rank_error": stable_rank
        * math.hypot(energy.error / energy.value, top.error / top.value),
    }
    if found.weight_norm:
        columns["rgn_error"] = energy.error / (2 * math.sqrt(energy.value) * found.weight_norm)
    return columns


def stratified_scores(candidates: Sequence[Matrix], *, seed: int) -> dict[str, float]:
    """The `random` control: a seeded draw per module that spreads over kinds and sizes.

    Modules of one kind and size form a stratum. Within it they get evenly spaced scores in
    random order with a random offset, so that the best k of all modules hold about the same
    share of every stratum.

    Returns:
        A number in (0, 1] per module name, without ties in practice.
    """
    strata: dict[tuple[str, str, int], list[str]] = defaultdict(list)
    for item in candidates:
        strata[item.block, item.kind, item.n_params].append(item.module)
    scores = {}
    for key, modules in sorted(strata.items()):
        generator = random.Random(f"{seed}:{key}")
        order = sorted(modules)
        generator.shuffle(order)
        for place, module in enumerate(order):
            scores[module] = 1 - (place + generator.random()) / len(order)
    return scores


def order_rows(rows: Sequence[ModuleRow], score: Score, rank: int) -> tuple[ModuleRow, ...]:
    """Rows numbered by a score, the highest first, ties by name; skipped rows go last."""
    candidates = []
    for row in rows:
        if row.is_candidate:
            value = score_of(row, score, rank)
            candidates.append((math.inf if value is None else -value, row.module, row))
    candidates.sort(key=lambda item: item[:2])
    ordered = [
        row if row.rank == number else row.changed(rank=number)
        for number, (*_, row) in enumerate(candidates, start=1)
    ]
    skipped = [row.changed(rank=None) for row in rows if not row.is_candidate]
    return (*ordered, *skipped)


def remark(row: ModuleRow, rank: int, *, trained: bool) -> str:
    """What a reader should know of a module at a LoRA rank; mostly nothing."""
    reached = row.matrices_reached
    if reached == 0:
        return "no training changed it" if trained else "its gradient is zero"
    remarks = []
    if reached is not None and reached < row.matrices:
        why = "no training changed" if trained else "no probe token reached"
        remarks.append(f"{why} {row.matrices - reached} of {row.matrices} experts")
    if rank >= row.max_rank:
        remarks.append(f"LoRA of rank {rank} spans the whole matrix (min side {row.max_rank})")
    return "; ".join(remarks)


def standard_error(replicates: Sequence[float]) -> float | None:
    """Standard error of a score from its replicates; `None` where there are fewer than two."""
    return float(np.std(replicates, ddof=1)) if len(replicates) > 1 else None


def interval(replicates: Sequence[float]) -> tuple[float | None, float | None]:
    """Ends of the 95 % interval of a score; `None` where there are fewer than two replicates."""
    if len(replicates) < 2:
        return None, None
    low, high = np.quantile(replicates, INTERVAL)
    return float(low), float(high)
