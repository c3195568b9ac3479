"""Score files and plans to hold against each other, and slow ways to say how far they agree."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import reports
from console import Outcome
from rich.cells import cell_len
from scipy.stats import kendalltau

from hlscore.records import ModuleRow, ScoreReport

RUN_RANK = 4
Document = dict[str, Any]
Values = Mapping[str, float | None]
SCORES = ("hls", "tail", "grad_norm", "taylor", "rgn", "l1_adam", "hls_share", "snr",
          "spectral", "kappa", "random")  # fmt: skip
_CURVES = {"hls": "curve_ranks", "tail": "curve_ranks", "l1_adam": "curve_ranks",
           "spectral": "spectral_ranks"}  # fmt: skip
_REPLICATES = ("hls_replicates", "tail_replicates", "grad_norm_replicates")
NO_SCORES: dict[str, Any] = {
    "status": "unreached",
    **dict.fromkeys((*SCORES, "grad_energy", "halves_norm", "weight_norm")),
    **dict.fromkeys(("hls_stderr", "hls_ci_low", "hls_ci_high")),
    **dict.fromkeys((*_CURVES.values(), "tail_curve_errors", "hls_curve_errors"), ()),
    **dict.fromkeys((f"{name}_curve" for name in _CURVES), ()),
    **dict.fromkeys(_REPLICATES, ()),
}
"""A row that no score was computed for."""
ONE: dict[str, Any] = {
    **dict.fromkeys((*SCORES, "grad_energy", "weight_norm"), 1.0),
    "halves_norm": 0.0,
    **dict.fromkeys((f"{name}_curve" for name in _CURVES), (1.0,) * len(reports.RANKS)),
    **dict.fromkeys(_REPLICATES, (1.0,) * 20),
}
"""A row whose scores are those of every other row."""


def noisy(count: int, seed: int, **same: Any) -> ScoreReport:
    """A report in which every score and every LoRA rank has an order of its own.

    Args:
        same: Fields that all candidates get.
    """
    report, draw = reports.report(count), random.Random(seed)

    def times(value: float | None) -> float:
        return (value or 0.0) * math.exp(draw.gauss(0, 0.7))

    rows = []
    for row in report.candidates:
        single = ("grad_energy", "taylor", "weight_norm", "snr", "kappa")
        changed: dict[str, Any] = {name: times(getattr(row, name)) for name in single}
        for name in _CURVES:
            curve = tuple(map(times, getattr(row, f"{name}_curve")))
            changed |= {f"{name}_curve": curve, name: curve[reports.RANKS.index(RUN_RANK)]}
        changed |= {"halves_norm": draw.uniform(1, 9), "random": draw.random()}
        rows.append(replace(row, **changed | same))
    skipped = [row for row in report.rows if not row.is_candidate]
    return replace(report, rows=(*rows, *skipped), run=replace(report.run, seed=seed))


def refused(found: Outcome, code: int, *parts: str) -> None:
    """Asserts that a command failed as asked, in one line that names what is wrong."""
    assert found.code == code, found.err
    assert found.message.splitlines()[0].isprintable()
    for part in parts:
        assert part in found.message, found.message


def check_width(text: str, width: int) -> None:
    """Asserts that tables fit; sentences and commands are left to the terminal to wrap."""
    sentences = ("share of", "mean tau within", "resamples:", "kind and size", "over modules")
    lines = text.partition("\nnext\n")[0].splitlines()
    tables = [line for line in lines[lines.index("") :] if line and not line.startswith(sentences)]
    assert len(tables) > 5
    for line in tables:
        assert cell_len(line) <= width, line


def values_of(report: ScoreReport, score: str, rank: int = RUN_RANK) -> Values:
    """A score of every candidate by its formula."""
    return {row.module: _value(row, score, rank) for row in report.candidates}


def _value(row: ModuleRow, score: str, rank: int) -> float | None:
    if score in _CURVES:
        curve, ranks = getattr(row, f"{score}_curve"), getattr(row, _CURVES[score])
        return curve[ranks.index(rank)] if curve else None
    if score == "hls_share":
        hls, norm = _value(row, "hls", rank), row.halves_norm
        size = row.matrices * row.out_features * row.in_features
        return None if hls is None or norm is None else hls / norm * size if norm else 0.0
    if score == "rgn":
        energy, norm = row.grad_energy, row.weight_norm
        return None if energy is None or not norm else math.sqrt(energy) / norm
    value: float | None = row.grad_energy if score == "grad_norm" else getattr(row, score)
    return value


def slow_tau(x: Sequence[float | None], y: Sequence[float | None]) -> float | None:
    """Tau-b of scipy, over the pairs in which both are known."""
    known = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    if any(len({pair[side] for pair in known}) < 2 for side in (0, 1)):
        return None
    return float(kendalltau(*zip(*known, strict=True)).statistic)


def slow_resampled_tau(rows: Sequence[Sequence[float]]) -> float:
    """Mean tau over disjoint pairs of resamples, twenty at most."""
    columns = list(zip(*rows, strict=True))[:40]
    taus = [slow_tau(columns[at], columns[at + 1]) for at in range(0, len(columns) - 1, 2)]
    return fmean(tau for tau in taus if tau is not None)


def close(wanted: float | None) -> Any:
    """What a figure has to be but for rounding."""
    return None if wanted is None else pytest.approx(wanted, abs=1e-9)
