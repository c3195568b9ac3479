"""The estimator against dense float64 gradients and full SVDs, for every family."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from families import FAMILIES
from problems import (
    RANK,
    RUNS,
    by_module,
    close,
    completions,
    differing,
    halves,
    probe_set,
    run_report,
    scored,
    settings,
)

TOLERANCE = 1e-4
FLOAT32 = 2.0**-23
EXAMPLES = completions(12)
ERRORS = (
    "hls_error", "rgn_error", "grad_energy_error", "head_energy_error", "tail_energy_error",
    "residual_ratio_error", "stable_rank_error", "rank_for_90_error",
)  # fmt: skip


@pytest.mark.parametrize("name", list(FAMILIES))
def test_scores_agree_with_dense_float64_oracle(name: str) -> None:
    model, run = FAMILIES[name].build(), settings(batch_size=5)
    report = run_report(model, EXAMPLES, run)
    rows = by_module(report.rows)
    probes = probe_set(model, EXAMPLES, run)
    oracle, loss = reference.dense_gradients(
        FAMILIES[name].build(dtype=torch.float64),
        halves(probes),
        [row.parameter for row in rows.values()],
    )
    assert report.probes.mean_loss == pytest.approx(loss, rel=1e-5)
    assert (report.run.estimator, report.run.sketch_size) == ("exact", None)
    wrong = []
    for row in rows.values():
        dense = oracle[row.parameter]
        weight = model.get_parameter(row.parameter).detach().double().numpy()
        product = weight.reshape(dense.mean.shape) * dense.mean
        expected = {
            "grad_energy": reference.energy(dense.mean),
            "tail_energy": reference.tail(dense.mean, RANK),
            "hls": reference.cross_fitted_tail(dense.first, dense.second, RANK),
            "weight_norm": math.sqrt((weight**2).sum()),
            "taylor": math.sqrt((product**2).sum()),
            "taylor_mean": float(np.abs(product).mean()),
        }
        if row.max_rank <= RANK:
            expected |= {"tail_energy": 0.0, "hls": 0.0}
        wrong += [
            (row.module, column, getattr(row, column), value)
            for column, value in expected.items()
            if not close(getattr(row, column), value, TOLERANCE, floor=_floor(column, dense))
        ]
        # A gradient that is zero up to rounding has either sign.
        expected_adam = 0.0 if row.max_rank <= RANK else reference.sign_step_rest(dense.mean, RANK)
        if not abs((row.l1_adam or 0) - expected_adam) <= 1e-3 * np.abs(dense.mean).sum():
            wrong.append((row.module, "l1_adam", row.l1_adam, expected_adam))
        assert row.l1_adam_curve[0] == pytest.approx(np.abs(dense.mean).sum(), rel=1e-4)
        assert len(row.l1_adam_curve) == len(row.curve_ranks)
    assert not wrong


def _floor(column: str, dense: reference.DenseGradients) -> float:
    """Where a tail nearly cancels, one float32 rounding of what it is a difference of."""
    if column == "hls":
        return FLOAT32 * math.sqrt(reference.energy(dense.first) * reference.energy(dense.second))
    return 1e-12 * reference.energy(dense.mean)


def test_derived_columns_follow_from_the_spectrum() -> None:
    model, run = FAMILIES["qwen3_moe"].build(), settings()
    rows = scored(model, EXAMPLES, run)
    oracle, _ = reference.dense_gradients(
        FAMILIES["qwen3_moe"].build(dtype=torch.float64),
        halves(probe_set(model, EXAMPLES, run)),
        [row.parameter for row in rows.values()],
    )
    for row in rows.values():
        mean = oracle[row.parameter].mean
        values = np.array([np.linalg.svd(m, compute_uv=False) for m in mean])
        total, squares = (values**2).sum(), (values**2).sum(0)
        shares = values / values.sum(-1, keepdims=True)
        entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(-1)
        assert close(row.stable_rank, total / squares[0])
        assert close(row.effective_rank, np.exp(entropy).mean(), 1e-3)
        assert row.rank_for_90 == int((squares.cumsum() >= 0.9 * total).argmax()) + 1
        assert close(row.rgn, math.sqrt(total) / row.weight_norm)  # type: ignore[operator]
        assert close(row.head_energy, total - reference.tail(mean, RANK))
        assert close(row.residual_ratio, reference.tail(mean, RANK) / total)
        for rank, value in zip(row.curve_ranks, row.tail_curve, strict=True):
            assert abs(value - reference.tail(mean, rank)) <= 1e-4 * total
        assert {getattr(row, name) for name in ERRORS} == {0.0}
        assert {*row.tail_curve_errors, *row.hls_curve_errors} == {0.0}


CHANGES: dict[str, dict[str, Any]] = {
    "one at a time": {"batch_size": 1},
    "all at once": {"batch_size": 32},
    "all activations kept": {"batch_size": 3, "checkpointing": False},
}
NAMES = ("llama", "gpt2", "qwen3_moe", "mixtral", "mamba2", "qwen3_next", "llava")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(
    ("name", "run"), [*((name, "exact") for name in NAMES), ("qwen3_moe", "sketch")]
)
def test_batches_padding_and_checkpointing_do_not_matter(
    name: str, run: str, change: dict[str, Any]
) -> None:
    options = {"batch_size": 2, "checkpointing": True} | RUNS[run] | {"sketch_size": 24}
    expected = scored(name, EXAMPLES, settings(**options))
    found = scored(name, EXAMPLES, settings(**options | change))
    tolerance, floor = (1e-4, FLOAT32) if run == "exact" else (1e-3, 1e-5)
    assert not differing(found, expected, tolerance, floor=floor)
    assert not differing(found, expected, tolerance, "taylor")


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_order_of_examples_does_not_matter(run: dict[str, Any]) -> None:
    turned = replace(EXAMPLES, rows=EXAMPLES.rows[::-1])
    first, second = (run_report("qwen3_moe", rows, settings(**run)) for rows in (EXAMPLES, turned))
    assert first.probes.hash == second.probes.hash
    assert first.rows == second.rows


def test_sums_in_host_memory_are_the_same() -> None:
    expected = scored("gpt2", EXAMPLES, settings(bootstrap=10))
    assert scored("gpt2", EXAMPLES, settings(bootstrap=10, accumulate_on="host")) == expected


def test_seed_moves_examples_between_halves() -> None:
    model = FAMILIES["llama"].build()
    first = scored(model, EXAMPLES, settings())
    second = scored(model, EXAMPLES, replace(settings(), seed=1))
    assert all(close(row.grad_energy, second[name].grad_energy or 0) for name, row in first.items())
    assert any(row.hls != second[name].hls for name, row in first.items())


def test_unreached_experts_are_counted() -> None:
    rows = scored("qwen3_moe_unreached", EXAMPLES, settings())
    experts = [row for row in rows.values() if row.matrices > 1]
    missed = [row for row in experts if row.matrices_reached == row.matrices - 1]
    assert missed
    assert all("no probe token reached 1 of 5 experts" in row.reason for row in missed)
