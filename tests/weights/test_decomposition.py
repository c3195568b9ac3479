"""`snr`, `spectral` and `kappa` against oracles written from their formulas, and against peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from matrices import power_law
from numpy.typing import NDArray
from peft.helpers import KappaTuneSelector, find_kappa_target_modules
from problems import completions, run_report, settings
from transformers import PreTrainedModel

from hlscore.flow.weights_alone import score_weights
from hlscore.inputs.identity import identify
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.weights import dense_weight
from hlscore.records import Candidate, ModuleRow, WeightStatistics
from hlscore.settings import (
    CandidateSettings,
    DataSettings,
    ModelSettings,
    PlanSettings,
    RankSettings,
)  # fmt: skip
from hlscore.steps import Silent
from hlscore.weights.decomposition import decomposition_bytes, measure_weight, singular_values

Matrix = NDArray[np.float64]
RANKS = (0, 1, 4, 16)
CPU = torch.device("cpu")


def spectrum(matrix: Matrix) -> Matrix:
    """Singular values; those that are zero up to rounding are zero."""
    values = np.asarray(np.linalg.svd(matrix, compute_uv=False), dtype=np.float64)
    values[values <= max(matrix.shape) * 2.0**-52 * values[0]] = 0
    return values


def snr(matrix: Matrix) -> float | None:
    """Spectrum, equation by equation."""
    s = spectrum(matrix)
    sigma = (np.quantile(s, 0.75) - np.quantile(s, 0.25)) / 1.349
    threshold = sigma * (1 + np.sqrt(min(matrix.shape) / max(matrix.shape)))
    signal, noise = s[s > threshold].sum(), s[s <= threshold].sum()
    return None if noise == 0 else signal / noise / s[0]


def expected_snr(stack: Matrix) -> Any:
    """Mean over a stack of matrices; none where one of them has no noise."""
    ratios = [snr(matrix) for matrix in stack]
    return None if None in ratios else pytest.approx(np.mean(ratios), rel=1e-9)


def mean_condition(stack: Matrix) -> float:
    spectra = [spectrum(matrix) for matrix in stack]
    return float(np.mean([np.inf if s[-1] == 0 else s[0] / s[-1] for s in spectra]))


def spectral(matrix: Matrix, rank: int, least: float = 1e-12) -> float:
    """twinkle, term by term."""
    s = spectrum(matrix)
    floored = [max(float(value), least) for value in s]
    whole = sum(floored)
    entropy = -sum(value / whole * np.log(value / whole) for value in floored)
    covered = sum(s[:rank] ** 2) / max(sum(s**2), least)
    kappa = s[0] / max(s[-1], least)
    last = 0.0
    if len(s) > 1:
        steps = [abs(np.log(a) - np.log(b)) for a, b in pairwise(floored)]
        last = 0.2 / max(sum(steps) / len(steps), least)
    return float(
        0.3 * np.exp(entropy) / len(s) + 0.3 * (1 - covered) + 0.02 * np.log(1 + kappa) + last
    )


def stack_of(weight: torch.Tensor) -> Matrix:
    return weight.double().reshape(-1, *weight.shape[-2:]).numpy()


def item_of(weight: torch.Tensor) -> Candidate:
    *lead, rows, columns = weight.shape
    count = int(np.prod(lead)) if lead else 1
    return Candidate(
        module="m", parameter="m.weight", layer=0, kind="m", block="", matrices=count,
        out_features=rows, in_features=columns, storage="out_in", form="linear",
        n_params=weight.numel(),
    )  # fmt: skip


def measured(weight: torch.Tensor) -> WeightStatistics:
    return measure_weight(weight, item_of(weight), RANKS, CPU)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHTS: dict[str, Callable[[], torch.Tensor]] = {
    "square": lambda: _random(32, 32),
    "wide": lambda: _random(24, 60),
    "tall": lambda: _random(60, 24),
    "very tall": lambda: _random(300, 12),
    "float32": lambda: _random(24, 40).float(),
    "bfloat16": lambda: _random(24, 40).bfloat16(),
    "low rank": lambda: _random(40, 20) @ _random(20, 30, seed=1),
    "very low rank": lambda: _random(40, 3) @ _random(3, 30, seed=1),
    "power law": lambda: power_law(30, 50, 1.5)[0],
    "ill conditioned": lambda: power_law(20, 20, 4.0)[0].double() / 3,
    "constant": lambda: torch.full((16, 20), 0.25),
    "identity": lambda: torch.eye(16, dtype=torch.float64),
    "one row": lambda: _random(1, 40),
    "one column": lambda: _random(40, 1),
    "one number": lambda: torch.tensor([[3.0]]),
    "row of zeros": lambda: torch.cat([_random(20, 30), torch.zeros(1, 30)]),
    "tiny": lambda: 1e-6 * _random(20, 30),
    "experts": lambda: _random(3, 20, 30),
    "many experts": lambda: power_law(12, 16, 0.7, stack=5),
}


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_scores_follow_their_formulas(name: str) -> None:
    weight = WEIGHTS[name]()
    found = measured(weight)
    stack = stack_of(weight)
    mean = mean_condition(stack)
    assert found.snr == expected_snr(stack)
    assert ("snr is infinite" in found.remark) == (found.snr is None)
    if np.isinf(mean):
        assert (found.condition_number, found.inverse_condition) == (None, 0.0)
        assert "singular" in found.remark
    else:
        # The smallest value has that many digits less than the largest.
        tolerance = max(1e-9, mean * 1e-15)
        assert found.condition_number == pytest.approx(mean, rel=tolerance)
        assert found.inverse_condition == pytest.approx(1 / mean, rel=tolerance)
    expected = [np.mean([spectral(matrix, rank) for matrix in stack]) for rank in RANKS]
    # A flat spectrum differs by rounding alone, which the last term divides by.
    flat = name == "identity"
    assert found.spectral_curve == pytest.approx(expected, rel=1e-6 if flat else 1e-9)
    assert found.weight_norm == pytest.approx(np.sqrt((stack**2).sum()), rel=1e-12)


def test_singular_values_keep_their_digits_where_the_gram_matrix_loses_them() -> None:
    s = torch.logspace(0, -11, 30, dtype=torch.float64)
    for rows, columns in ((30, 30), (30, 400), (1000, 30)):
        left = torch.linalg.qr(_random(rows, 30)).Q[:, :30]
        right = torch.linalg.qr(_random(columns, 30, seed=1)).Q[:, :30]
        found = singular_values(left * s @ right.mT, CPU)
        assert found == pytest.approx(s.numpy(), rel=1e-4)
        gram = (left * s @ right.mT).numpy()
        gram = gram @ gram.T if rows <= columns else gram.T @ gram
        squared = np.sqrt(np.abs(np.linalg.eigvalsh(gram))).min()
        assert abs(squared - 1e-11) > 1e-10


def test_transposing_changes_nothing() -> None:
    weight = _random(3, 20, 30)
    found, turned = measured(weight), measured(weight.mT.contiguous())
    assert turned.snr == pytest.approx(found.snr, rel=1e-12)
    assert turned.inverse_condition == pytest.approx(found.inverse_condition, rel=1e-10)
    assert turned.spectral_curve == pytest.approx(found.spectral_curve, rel=1e-10)


@pytest.mark.parametrize(
    ("weight", "remark"),
    [
        (torch.zeros(8, 10), "a weight of zeros has no spectrum"),
        (torch.stack([torch.eye(8), torch.zeros(8, 8)]), "zeros has no spectrum (1 of 2 experts)"),
        (torch.full((8, 10), float("nan")), "its weight holds NaN or infinity"),
        (torch.full((8, 10), float("inf")), "its weight holds NaN or infinity"),
        (None, "its weight cannot be read as numbers"),
    ],
)
def test_weights_without_scores_say_why(weight: torch.Tensor | None, remark: str) -> None:
    item = item_of(torch.zeros(8, 10) if weight is None else weight)
    found = measure_weight(weight, item, RANKS, CPU)
    assert (found.snr, found.condition_number, found.inverse_condition) == (None, None, None)
    assert found.spectral_curve == ()
    assert remark in found.remark


def test_an_infinite_ratio_of_one_expert_is_told() -> None:
    found = measured(torch.stack([torch.eye(8), torch.diag(torch.arange(1.0, 9.0))]))
    assert found.snr is None
    assert "(1 of 2 experts)" in found.remark
    assert found.condition_number == pytest.approx((1 + 8) / 2)


def test_memory_of_a_decomposition_is_bounded_by_the_short_side() -> None:
    small = decomposition_bytes(item_of(torch.empty(64, 400, device="meta")))
    assert decomposition_bytes(item_of(torch.empty(64, 100_000, device="meta"))) == small
    assert small == 8 * 3 * 64 * (4 * 64 + 64)


def held_weights(model: PreTrainedModel, score: str = "snr") -> list[ModuleRow]:
    """Candidate rows of a run on the weights alone, best first."""
    run = RankSettings(
        model=ModelSettings(model="test"),
        data=DataSettings(data="none"),
        plan=PlanSettings(score=score, rank=4, budget="0.3"),
    )
    return list(score_weights(run, Silent(), (model, identify(model, "t", None))).report.candidates)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "gpt_oss", "mamba", "llava"])
def test_every_module_of_a_model_is_scored(name: str) -> None:
    model = FAMILIES[name].build()
    rows = {row.module: row for row in held_weights(model)}
    for item in candidates_of(find_modules(model, CandidateSettings())):
        weight = dense_weight(model, item)
        assert weight is not None
        stack, row = stack_of(weight), rows[item.module]
        assert row.condition_number == pytest.approx(mean_condition(stack), rel=1e-7)
        assert row.kappa == pytest.approx(1 / (row.condition_number or 0))
        assert row.spectral == pytest.approx(np.mean([spectral(m, 4) for m in stack]), rel=1e-9)
        assert row.snr == expected_snr(stack)
        assert row.matrices_reached is None
        assert row.hls is row.tail is row.grad_norm is row.taylor is row.rgn is row.l1_adam is None


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "mixtral"])
def test_kappa_orders_as_peft_does(name: str) -> None:
    model = FAMILIES[name].build()
    peer = KappaTuneSelector(model, show_progress=False)
    peer.get_best_targets()
    known = dict(peer._condition_numbers or {}) | dict(peer._parameter_condition_numbers or {})
    found = held_weights(model, score="kappa")
    rows = {row.module: row for row in found if row.module in known}
    assert len(rows) > 10
    for module, row in rows.items():
        assert row.condition_number == pytest.approx(known[module], rel=2e-3), module
    asked = find_kappa_target_modules(model, top_p=0.5, show_progress=False)
    ours = [module for module, row in rows.items() if row.form == "linear"]  # best first
    theirs = [module for module in asked["target_modules"] or [] if module in rows]
    assert theirs == ours[: len(theirs)]
    assert theirs


def test_probes_do_not_change_what_weights_say() -> None:
    model = FAMILIES["qwen3_moe"].build()
    weights = {row.module: row for row in held_weights(model)}
    run = settings()
    plain = run_report(model, completions(6), run)
    both = run_report(model, completions(6), replace(run, weight_scores=True))
    probed = {row.module: row for row in plain.candidates}
    for row in both.candidates:
        other = weights[row.module]
        assert (row.snr, row.kappa, row.condition_number) == (
            other.snr, other.kappa, other.condition_number,
        )  # fmt: skip
        assert row.spectral_curve[row.spectral_ranks.index(4)] == other.spectral
        assert row.hls == probed[row.module].hls
        assert probed[row.module].snr is probed[row.module].kappa is None
        assert probed[row.module].spectral_curve == ()
    decided = run_report(
        model, completions(6), replace(run, plan=PlanSettings(score="kappa", rank=3))
    )
    assert [row.module for row in decided.candidates] == sorted(
        weights, key=lambda name: (-(weights[name].kappa or 0), name)
    )
