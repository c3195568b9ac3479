"""Sketches taken in the backward pass, against dense float64 gradients times the same Omega."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import MethodType
from typing import Any

import numpy as np
import pytest
import reference
import torch
from families import FAMILIES
from problems import (
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
from torch import nn
from transformers import AutoModelForCausalLM, PhimoeConfig, PreTrainedModel

from hlscore.gradients.probe_run import ProbeRun
from hlscore.gradients.sketch import LEAST_SAVING, TestMatrices, fold_rows, short_first
from hlscore.gradients.sketched import SketchGradients
from hlscore.gradients.sources import observed_as, observed_sources
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.probes.units import ProbeSet
from hlscore.records import Candidate, ModuleRow
from hlscore.settings import CandidateSettings, RankSettings

SIZE = 8  # the widest matrices that are kept whole are four times as wide: narrower than any
FLOAT32 = 2.0**-23
EXAMPLES = completions(12)
EVERY_FAMILY = pytest.mark.parametrize("name", list(FAMILIES))

Dense = dict[str, reference.DenseGradients]
Change = Callable[[PreTrainedModel], None]


@dataclass(frozen=True)
class Captured:
    """A sketch run, and what it was taken from."""

    gradients: SketchGradients
    probes: ProbeSet
    items: dict[str, Candidate]
    formed: frozenset[str]

    @property
    def tokens(self) -> list[int]:
        return [sum(e.counted_tokens for e in half) for half in halves(self.probes)]


def capture(model: PreTrainedModel, run: RankSettings) -> Captured:
    """Run the probes through a model, and stop before anything is reduced."""
    items = candidates_of(find_modules(model, run.candidates))
    probes = probe_set(model, EXAMPLES, run)
    gradients = SketchGradients(items, TestMatrices(size=SIZE, seed=run.seed), groups=None)
    sources = observed_sources(model, items, probes.halves[0][0][0].input_ids[:8])
    options = replace(run.capture, estimator="sketch")
    ProbeRun(
        model=model, probes=probes, gradients=gradients, sources=sources, settings=options
    ).run()
    return Captured(
        gradients, probes, {item.module: item for item in items}, frozenset(sources.weights)
    )


@cache
def family_oracle(name: str) -> Dense:
    """Dense float64 gradients of a family, by module."""
    return oracle(FAMILIES[name].build(dtype=torch.float64), settings())


def oracle(model: PreTrainedModel, run: RankSettings) -> Dense:
    """Dense float64 gradients of a model, by module."""
    items = candidates_of(find_modules(model, run.candidates))
    found, _ = reference.dense_gradients(
        model, halves(probe_set(model, EXAMPLES, run)), [item.parameter for item in items]
    )
    return {item.module: found[item.parameter] for item in items}


def in_layout(item: Candidate, stack: reference.Matrix) -> torch.Tensor:
    """A gradient with the outputs of the module as rows, whatever the layout of its weight."""
    dense = torch.from_numpy(stack)
    return dense.mT if item.storage == "in_out" else dense


def wrong_sketches(found: Captured, dense: Dense) -> list[tuple[Any, ...]]:
    """Sketches that are not the gradient times Omega on its long side, over sqrt(k)."""
    tests, wrong = TestMatrices(size=SIZE, seed=0), []
    for half in (0, 1):
        totals = found.gradients.totals(half)
        assert totals.keys() == found.items.keys()
        for name, item in found.items.items():
            mean = (dense[name].first, dense[name].second)[half]
            matrix = short_first(in_layout(item, mean * found.tokens[half]))
            width = matrix.shape[-1]
            omega = tests.of(width, torch.device("cpu"), torch.float64)
            expected = matrix @ omega / SIZE**0.5
            assert totals[name].dtype == torch.float32
            assert totals[name].shape == expected.shape
            if not (error := apart(totals[name], expected)) < 1e-4:
                wrong.append((name, half, error))
    return wrong


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over that of the expected tensor."""
    return float((found.double() - expected).norm() / expected.norm())


WAYS = [
    *((name, *way) for name in FAMILIES for way in ((True, 5), (False, 1))),
    *((name, *way) for name in ("llama", "qwen3_moe", "jamba") for way in ((True, 1), (False, 5))),
]


@pytest.mark.parametrize(("name", "checkpointing", "batch_size"), WAYS)
def test_sketches_are_dense_gradients_times_omega(
    name: str, checkpointing: bool, batch_size: int
) -> None:
    run = settings(batch_size=batch_size, checkpointing=checkpointing)
    found = capture(FAMILIES[name].build(), run)
    assert not wrong_sketches(found, family_oracle(name))


@EVERY_FAMILY
def test_gradients_that_are_kept_whole_give_the_exact_scores(name: str) -> None:
    model = FAMILIES[name].build()
    whole = run_report(model, EXAMPLES, settings(batch_size=5))
    exact = by_module(whole.rows)
    run = settings(batch_size=5, estimator="sketch", sketch_size=128)
    report = run_report(model, EXAMPLES, run)
    assert report.probes.mean_loss == pytest.approx(whole.probes.mean_loss, rel=1e-6)
    assert (report.run.estimator, report.run.sketch_size) == ("sketch", 128)
    dense, wrong = family_oracle(name), []
    for module, row in by_module(report.rows).items():
        wrong += differences(row, exact[module], dense[module])
        assert row.taylor is row.taylor_mean is row.effective_rank is None
        assert row.hls_error == row.tail_energy_error == row.rank_for_90_error == 0
    assert not wrong


def differences(
    row: ModuleRow, exact: ModuleRow, dense: reference.DenseGradients
) -> list[tuple[Any, ...]]:
    """Columns that differ by more than the tolerances of the exact estimator."""
    rounding = FLOAT32 * math.sqrt(reference.energy(dense.first) * reference.energy(dense.second))
    tiny = 1e-12 * reference.energy(dense.mean)
    floors = {"hls": rounding, "tail_energy": tiny, "residual_ratio": 1e-12, "random": 0.0}
    columns = ("hls", "tail_energy", "grad_energy", "head_energy", "residual_ratio",
               "stable_rank", "rgn", "weight_norm", "random")  # fmt: skip
    found = [
        (row.module, column, getattr(row, column), getattr(exact, column))
        for column in columns
        if not close(getattr(row, column), getattr(exact, column), floor=floors.get(column, 1e-30))
    ]
    same = ("status", "reason", "matrices_reached", "rank_for_90")
    found += [(row.module, c) for c in same if getattr(row, c) != getattr(exact, c)]
    for rank, mine in zip(row.curve_ranks, row.hls_curve, strict=True):
        if rank in exact.curve_ranks and rank < row.max_rank:
            theirs = exact.hls_curve[exact.curve_ranks.index(rank)]
            if not close(mine, theirs, floor=rounding):
                found.append((row.module, f"hls at {rank}", mine, theirs))
    return found


@EVERY_FAMILY
def test_no_gradient_of_a_linear_map_is_formed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[name]
    model = family.build()
    kinds = {
        family.block_prefix(index) + path: spec.kind
        for index, block in enumerate(family.blocks)
        for path, spec in block.maps.items()
    }
    # Mamba multiplies with this weight itself.
    direct = {path for path in kinds if path.endswith("dt_proj")}
    tapped = {path for path, kind in kinds.items() if kind != "router"} - direct
    accumulated: list[str] = []
    for parameter_name, parameter in model.named_parameters():
        module = parameter_name.removesuffix(".weight")
        if module in tapped:
            parameter.register_post_accumulate_grad_hook(
                lambda _, module=module: accumulated.append(module)
            )
    require: set[str] = set()

    def watched(self: ProbeRun, *args: Any, **kwargs: Any) -> float:
        require.update(n for n, p in self.model.named_parameters() if p.requires_grad)
        found = real(self, *args, **kwargs)
        assert all(p.grad is None for p in self.model.parameters())
        return found

    real = ProbeRun._run_part
    monkeypatch.setattr(ProbeRun, "_run_part", watched)
    found = capture(model, settings(batch_size=5))
    assert not accumulated
    assert require == {found.items[module].parameter for module in found.formed}
    assert found.formed.isdisjoint(tapped)
    assert found.formed <= kinds.keys()
    if name == "mamba":
        assert found.formed == direct
    # What memory is planned for: dt_proj is only found out by trying.
    planned = {m for m, item in found.items.items() if not observed_as(model, item)}
    assert planned == found.formed - direct


@pytest.mark.parametrize("checkpointing", [True, False])
def test_modules_that_read_one_tensor_share_its_projection(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[str, torch.Tensor]] = []
    drawn: list[torch.Tensor] = []

    def watched(self: SketchGradients, name: str, inputs: torch.Tensor) -> torch.Tensor:
        found = real(self, name, inputs)
        kept.append((name, found))
        if not any(found is other for other in drawn):
            drawn.append(found)
        return found

    real = SketchGradients.keep
    monkeypatch.setattr(SketchGradients, "keep", watched)
    run = settings(batch_size=32, groups=1, checkpointing=checkpointing)
    capture(FAMILIES["olmo2"].build(), run)
    # Two halves of one batch, and two blocks: each input is reduced once, checkpointed or not.
    assert len(kept) == 2 * 2 * 7
    queries, keys, values = (
        [found for name, found in kept if name.endswith(kind)]
        for kind in ("q_proj", "k_proj", "v_proj")
    )
    for query, key, value in zip(queries, keys, values, strict=True):
        assert query is key is value
        assert query.shape[-1] == SIZE
    # Gate and up are longer on the side of their output, and keep one input between them.
    assert len(drawn) == 2 * 2 * 4


def test_a_projection_is_not_reused_for_other_values() -> None:
    item = Candidate(
        module="a", parameter="a.weight", layer=0, kind="a", block="", matrices=1, out_features=4,
        in_features=40, storage="out_in", form="linear", n_params=160,
    )  # fmt: skip
    tests = TestMatrices(size=8, seed=0)
    sums = SketchGradients((item, replace(item, module="b")), tests, groups=None)
    omega = tests.of(40, torch.device("cpu"), torch.float32)
    sums.begin_batch(0, 1.0)
    inputs = torch.randn(3, 40)
    first = sums.keep("a", inputs)
    assert sums.keep("b", inputs) is first
    inputs.mul_(2)
    torch.testing.assert_close(sums.keep("b", inputs), 2 * first)
    copied = inputs.clone()
    del inputs
    assert sums.keep("a", copied) is not first
    torch.testing.assert_close(sums.keep("a", copied), copied @ omega)


def _share_weight(model: PreTrainedModel) -> None:
    first, second = (layer.mlp for layer in model.model.layers)
    second.up_proj.weight = first.up_proj.weight


def _share_module(model: PreTrainedModel) -> None:
    first, second = (layer.mlp for layer in model.model.layers)
    second.up_proj = first.up_proj


def _with_forward(forward: Callable[..., torch.Tensor], *layers: int) -> Change:
    """Replace the forward pass of the feed-forward modules of some layers."""

    def change(model: PreTrainedModel) -> None:
        for index in layers:
            mlp = model.model.layers[index].mlp
            mlp.forward = MethodType(forward, mlp)

    return change


def _call_twice(self: Any, x: torch.Tensor) -> torch.Tensor:
    gated = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
    return self.down_proj(gated) + self.down_proj(gated * self.up_proj(x.flip(-1)))


def _call_without_gradient(self: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scale = self.up_proj(x).abs().mean(-1, keepdim=True)
    return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x) * scale)


def _use_weight_and_module(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.down_proj(self.act_fn(x @ self.gate_proj.weight.T) * self.up_proj(input=x))


def _write_into_embeddings(model: PreTrainedModel) -> None:
    rotary = model.model.rotary_emb
    own = rotary.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        x.mul_(1.5)
        return own(x, *args, **kwargs)

    rotary.forward = forward


def _write_into_outputs(model: PreTrainedModel) -> None:
    """Linear maps with and without a bias give a view, or none, of what they computed."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(x)
        up.mul_(self.act_fn(self.gate_proj(x)))
        down = self.down_proj(up)
        down[..., :3].add_(x[..., :3])
        return down.add_(self.down_proj(up.clone()))

    for index, layer in enumerate(model.model.layers):
        layer.mlp.forward = MethodType(forward, layer.mlp)
        if index == 0:
            for part in (layer.mlp.up_proj, layer.mlp.down_proj):
                values = torch.linspace(-1, 1, part.out_features, dtype=part.weight.dtype)
                part.bias = nn.Parameter(values)


UNUSUAL: dict[str, Change] = {
    "shared weight": _share_weight,
    "shared module": _share_module,
    "called twice": _with_forward(_call_twice, 0, 1),
    "called without gradient": _with_forward(_call_without_gradient, 1),
    "weight and module": _with_forward(_use_weight_and_module, 0),
    "written embeddings": _write_into_embeddings,
    "written outputs": _write_into_outputs,
}


@pytest.mark.parametrize("change", UNUSUAL.values(), ids=UNUSUAL)
@pytest.mark.parametrize("checkpointing", [True, False])
def test_unusual_uses_of_a_module_add_up(change: Change, checkpointing: bool) -> None:
    plain, wide = FAMILIES["llama"].build(), FAMILIES["llama"].build(dtype=torch.float64)
    change(plain)
    change(wide)
    run = settings(batch_size=5, checkpointing=checkpointing)
    dense = oracle(wide, run)
    assert not wrong_sketches(capture(plain, run), dense)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_embedding_and_head_are_captured_too(name: str) -> None:
    run = replace(settings(), candidates=CandidateSettings(embeddings=True, head=True))
    found = capture(FAMILIES[name].build(), run)
    outside = {module for module in found.items if ".layers." not in module}
    # A tied head is one weight that is looked up and multiplied with.
    tied = FAMILIES[name].tied_head
    assert outside == {"model.embed_tokens"} | (set() if tied else {"lm_head"})
    assert found.formed == {"model.embed_tokens"}
    assert not wrong_sketches(found, oracle(FAMILIES[name].build(dtype=torch.float64), run))


def test_routers_that_derive_from_linear_maps_compute_more_than_those() -> None:
    def build(dtype: torch.dtype) -> PreTrainedModel:
        config = PhimoeConfig(
            vocab_size=300, hidden_size=48, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
            num_experts_per_tok=2, max_position_embeddings=256, initializer_range=0.1,
        )  # fmt: skip
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, experts_implementation="eager"
        )
        return nn.Module.to(model, dtype).eval()  # type: ignore[return-value]

    found = capture(build(torch.float32), settings())
    assert found.formed == {f"model.layers.{index}.mlp.router" for index in (0, 1)}
    routers = set(found.formed)
    wrong = wrong_sketches(found, oracle(build(torch.float64), settings()))
    # The routing is hard here: what reaches a router is rounding.
    assert not [item for item in wrong if item[0] not in routers]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_16_bit_weights_score_close_to_float32(name: str, dtype: torch.dtype) -> None:
    """Gradients survive the small range of float16, too."""
    model = FAMILIES[name].build(dtype=dtype)
    exact = scored(model, EXAMPLES, settings())
    found = scored(model, EXAMPLES, settings(estimator="sketch", sketch_size=128))
    # The exact gradient is rounded to 16 bits, the sketch sums the same products in 32.
    assert not differing(found, exact, 0.02, "grad_energy", "tail_energy")
    for module, row in exact.items():
        true = reference.energy(family_oracle(name)[module].mean)
        assert row.grad_energy == pytest.approx(true, rel=0.1)


def test_test_matrices_are_signs_and_reproducible() -> None:
    device = torch.device("cpu")
    tests = TestMatrices(size=32, seed=0)
    omega = tests.of(300, device, torch.float32)
    assert omega.shape == (300, 32)
    assert set(omega.unique().tolist()) == {-1.0, 1.0}
    assert tests.of(300, device, torch.float32) is omega
    again = TestMatrices(size=32, seed=0).of(300, device, torch.bfloat16)
    assert torch.equal(again.float(), omega)
    for other in (
        TestMatrices(size=32, seed=1).of(300, device, torch.float32),
        TestMatrices(size=32, seed=0).of(301, device, torch.float32),
    ):
        assert not torch.equal(other[:300], omega)


def test_sketches_that_save_little_are_not_taken() -> None:
    tests, widest = TestMatrices(size=32, seed=0), 32 * LEAST_SAVING
    assert [tests.columns(width) for width in (31, 32, widest, widest + 1)] == [31, 32, widest, 32]


def test_compressed_matrices_keep_their_energy_on_average() -> None:
    matrix = torch.randn(1, 20, 300, generator=torch.Generator().manual_seed(0))
    energy = float((matrix**2).sum())
    drawn = [
        float((TestMatrices(size=32, seed=seed).compress(matrix) ** 2).sum()) for seed in range(200)
    ]
    assert np.mean(drawn) == pytest.approx(energy, rel=0.02)


def test_matrices_are_compressed_on_the_long_side_of_either_orientation() -> None:
    tall, tests = torch.randn(2, 50, 7), TestMatrices(size=8, seed=0)
    assert short_first(tall).shape == (2, 7, 50)
    assert torch.equal(tests.compress(tall), tests.compress(tall.mT))
    assert tests.compress(tall).shape == (2, 7, 8)
    assert tests.compress(torch.randn(2, 12, 20)).shape == (2, 12, 8)
    narrow = torch.randn(2, 5, 7)
    assert torch.equal(tests.compress(narrow), narrow)


def test_folded_sketches_keep_inner_products_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(400, 60, 4, generator=generator) for _ in range(2))
    folded = [fold_rows(part) for part in (first, second)]
    assert folded[0].shape == (400, 8, 4)
    true = (first.mT @ first).mean(0)
    assert float(((folded[0].mT @ folded[0]).mean(0) - true).abs().max()) < 0.1 * 60
    cross = (folded[0].mT @ folded[1] - first.mT @ second).mean(0)
    assert float(cross.abs().max()) < 4 * 60 / 8**0.5 / 400**0.5
    assert fold_rows(first[:, :8]).shape == (400, 8, 4)
    total = fold_rows(first + second)
    torch.testing.assert_close(total, folded[0] + folded[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "mamba2"])
def test_small_sketches_are_within_their_stated_errors(name: str) -> None:
    model = FAMILIES[name].build()
    exact = scored(model, EXAMPLES, settings())
    run = settings(estimator="sketch", sketch_size=8)
    within = []
    for module, row in scored(model, EXAMPLES, run).items():
        assert row.hls_error
        for column in ("hls", "tail_energy", "grad_energy", "head_energy", "residual_ratio",
                       "stable_rank", "rgn"):  # fmt: skip
            error = getattr(row, f"{column}_error")
            gap = abs(getattr(row, column) - getattr(exact[module], column))
            within.append(gap <= 3 * error)
    assert np.mean(within) >= 0.8
