"""Score formulas and the stratified control."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from reports import report, row

from hlscore.errors import UsageError
from hlscore.scores.registry import SCORES, find_score, score_of
from hlscore.scores.rows import order_rows, stratified_scores


def test_registry_names_formula_unit_and_source() -> None:
    assert list(SCORES) == [
        "hls", "tail", "grad_norm", "taylor", "rgn", "l1_adam", "hls_share", "snr",
        "spectral", "kappa", "random",
    ]  # fmt: skip
    assert all(score.formula and score.unit and score.source for score in SCORES.values())
    with pytest.raises(UsageError, match="no score 'nonsense'"):
        find_score("nonsense")


def test_scores_read_the_row() -> None:
    item = row(3)
    expected = {
        "hls": item.hls_curve[3], "tail": item.tail_curve[3], "l1_adam": item.l1_adam_curve[3],
        "spectral": item.spectral_curve[3], "grad_norm": item.grad_energy, "taylor": item.taylor,
        "snr": item.snr, "kappa": item.kappa, "random": item.random,
        "rgn": pytest.approx((item.grad_energy or 0) ** 0.5 / 5),
        "hls_share": pytest.approx(item.hls_curve[3] / 7 * 64 * item.in_features),
    }  # fmt: skip
    assert {name: score_of(item, score, 8) for name, score in SCORES.items()} == expected
    assert score_of(item, SCORES["hls"], 48) == score_of(item, SCORES["l1_adam"], 48) == 0
    with pytest.raises(UsageError, match="no score for rank 48") as found:
        score_of(item, SCORES["spectral"], 48)
    assert "one of 2, 4, 8, 16" in found.value.hint
    assert score_of(replace(item, weight_norm=0.0), SCORES["rgn"], 2) is None


def test_rows_are_ordered_by_score_then_name_and_unknown_last() -> None:
    rows = [replace(row(0), taylor=1.0), replace(row(1), taylor=None), replace(row(2), taylor=1.0),
            replace(row(3), taylor=2.0)]  # fmt: skip
    ordered = order_rows(rows, SCORES["taylor"], 4)
    names = [item.module for item in ordered]
    assert names == [rows[3].module, *sorted([rows[0].module, rows[2].module]), rows[1].module]
    assert [item.rank for item in ordered] == [1, 2, 3, 4]


# 10 blocks of 7 kinds, all of one size.
CANDIDATES = [item.changed(n_params=4096) for item in report(70).candidates]


def test_control_spreads_over_kinds_and_follows_the_seed() -> None:
    first = stratified_scores(CANDIDATES, seed=0)
    assert first == stratified_scores(CANDIDATES, seed=0)
    assert first != stratified_scores(CANDIDATES, seed=1)
    assert all(0 < value <= 1 for value in first.values())
    kinds = {item.module: item.kind for item in CANDIDATES}
    for seed in range(20):
        scores = stratified_scores(CANDIDATES, seed=seed)
        best = sorted(scores, key=lambda name: -scores[name])[:28]
        assert set(Counter(kinds[name] for name in best).values()) <= {3, 4, 5}


def test_control_is_uniform_within_a_kind() -> None:
    wins: Counter[str] = Counter()
    for seed in range(300):
        scores = stratified_scores(CANDIDATES, seed=seed)
        wins.update(sorted(scores, key=lambda name: -scores[name])[:7])
    layers = Counter(name.split(".")[2] for name in wins.elements())
    assert len(layers) == 10
    assert max(layers.values()) < 2 * min(layers.values())
