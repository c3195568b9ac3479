"""Memory that runs out, and memory that is planned."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from families import FAMILIES
from problems import by_module, completions, differing, probe_set, run_report, settings
from tokens import byte_tokenizer
from torch import nn
from transformers import PreTrainedModel

from hlscore.errors import CaptureError, UsageError
from hlscore.flow.forecast import forecast
from hlscore.gradients import estimator, sketched
from hlscore.gradients.estimator import EstimatorChoice, choose_estimator, predict
from hlscore.gradients.probe_run import ProbeRun
from hlscore.gradients.sketch import TestMatrices
from hlscore.gradients.sketched import SketchGradients
from hlscore.gradients.sources import observed_sources, weight_sources
from hlscore.gradients.sums import ExactGradients
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.memory import free_bytes, is_out_of_memory
from hlscore.records import ScoreReport
from hlscore.settings import PlanSettings, RankSettings
from hlscore.wording import memory

CPU = torch.device("cpu")
EXAMPLES = completions(24)
ON_DEVICE = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
ON_HOST = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 549755813888 bytes. Error code 12 (Cannot allocate memory)"
)


def failing_above(
    module: nn.Module, most: int, error: RuntimeError, *, at: str = "output", every: int = 1
) -> list[int]:
    """Fail when a module's input or output, or the gradient of one, holds more examples than fit.

    Returns:
        The examples that were seen, filled as the model runs.
    """
    seen: list[int] = []

    def check(values: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        rows = len(values[0] if isinstance(values, tuple) else values)
        seen.append(rows)
        if rows > most and seen.count(rows) % every == 0:
            # A new one, as torch raises: an error that is kept keeps the tensors of its frames.
            raise type(error)(*error.args)

    def watch(_: nn.Module, args: Any, output: Any = None) -> None:
        given = output if "output" in at else args[0]
        values = given[0] if isinstance(given, tuple) else given
        if "gradient" not in at:
            check(values)
        elif values.requires_grad:
            values.register_hook(check)

    if "output" in at:
        module.register_forward_hook(watch)
    else:
        module.register_forward_pre_hook(watch)
    return seen


# Where a model fails whenever a batch holds more examples than fit.
LIMITS: dict[str, tuple[str, dict[str, Any]]] = {
    "in the forward pass": ("layers.1.self_attn.q_proj", {}),
    # After the modules of the last block were added, and those of the first were not.
    "in the backward pass": ("layers.0", {"at": "gradient of the output"}),
    # After some modules of a block were added, among them one of two that read one tensor.
    "between two modules": ("layers.1.self_attn.k_proj", {"at": "gradient of the output"}),
    # Every other time: in the trial pass, and in the recomputation after a forward pass.
    "in the recomputation": ("layers.0.self_attn.q_proj", {"every": 2}),
}


def limit(
    model: PreTrainedModel, most: int, error: RuntimeError, where: str = "in the backward pass"
) -> list[int]:
    """Fail in one of the places, see `failing_above`."""
    name, options = LIMITS[where]
    return failing_above(model.get_submodule(f"model.{name}"), most, error, **options)


def assert_alike(report: ScoreReport, expected: ScoreReport) -> None:
    """Equal but for float32 rounding of sums in another order."""
    rows = (by_module(report.rows), by_module(expected.rows))
    assert not differing(*rows, 1e-5, floor=1e-6)
    assert not differing(*rows, 0.02, "hls_stderr")
    assert report.probes.mean_loss == pytest.approx(expected.probes.mean_loss, rel=1e-6)


def small(**capture: Any) -> RankSettings:
    return settings(
        **{"groups": 2, "batch_size": 8, "estimator": "sketch", "sketch_size": 8} | capture
    )


CASES: dict[str, tuple[str, dict[str, Any], RuntimeError]] = {
    "exact": ("llama", {"estimator": "exact", "bootstrap": 20}, ON_DEVICE),
    "sketch": ("llama", {}, ON_DEVICE),
    "experts": ("qwen3_moe", {}, ON_DEVICE),
    "kept": ("llama", {"checkpointing": False, "bootstrap": 20}, ON_HOST),
}


@cache
def unlimited(case: str) -> ScoreReport:
    name, options, _ = CASES[case]
    return run_report(name, EXAMPLES, small(**options))


@pytest.mark.parametrize("where", LIMITS)
@pytest.mark.parametrize("case", CASES)
def test_batches_are_halved_until_they_fit(case: str, where: str) -> None:
    (name, options, error), expected = CASES[case], unlimited(case)
    for most, smallest in ((5, 3), (2, 1)):  # 6 in a group: 3, or 3 and then 1
        model = FAMILIES[name].build()
        seen = limit(model, most, error, where)
        report = run_report(model, EXAMPLES, small(**options))
        assert max(seen) > most
        assert_alike(report, expected)
        note = f"batches of 8 were halved down to {smallest};"
        assert sum(note in line for line in report.run.notes) == 1
    assert not any("halved" in line for line in expected.run.notes)


def _call_twice(model: PreTrainedModel) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        gated = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(gated) + self.down_proj(gated * gated)

    for layer in model.model.layers:
        layer.mlp.forward = MethodType(forward, layer.mlp)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_memory_may_run_out_between_two_uses_of_a_module(checkpointing: bool) -> None:
    run = small(checkpointing=checkpointing)
    plain, model = FAMILIES["llama"].build(), FAMILIES["llama"].build()
    _call_twice(plain)
    _call_twice(model)
    expected = run_report(plain, EXAMPLES, run)
    down = model.model.layers[0].mlp.down_proj
    seen = failing_above(down, 4, ON_DEVICE, at="gradient of the input")
    report = run_report(model, EXAMPLES, run)
    assert max(seen) > 4
    assert_alike(report, expected)


def test_experts_that_were_added_in_part_are_not_added_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = unlimited("experts")
    calls: list[int] = []

    def failing(*args: Any) -> None:
        calls.append(1)
        # Of the 2nd group of experts that is added, after 2 of 5.
        if len(calls) == 8:
            raise ON_DEVICE
        real(*args)

    real = sketched._add_outer
    monkeypatch.setattr(sketched, "_add_outer", failing)
    report = run_report("qwen3_moe", EXAMPLES, small())
    assert_alike(report, expected)
    assert len(report.run.notes) == 2


@pytest.mark.parametrize(("estimator_name", "error"), [("exact", ON_DEVICE), ("sketch", ON_HOST)])
def test_an_example_that_does_not_fit_is_one_clear_error(
    estimator_name: str, error: RuntimeError
) -> None:
    model = FAMILIES["llama"].build()
    limit(model, 0, error)
    with pytest.raises(CaptureError, match="out of memory, also with a single example") as found:
        run_report(model, EXAMPLES, settings(estimator=estimator_name))
    assert "--estimator sketch" in (found.value.hint or "")


def test_memory_that_runs_out_while_scoring_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*args: Any, **kwargs: Any) -> Any:
        raise ON_HOST

    monkeypatch.setattr("hlscore.gradients.run.reduce_gradients", failing)
    with pytest.raises(CaptureError, match="ran out of memory"):
        run_report("llama", EXAMPLES, settings())


def test_other_errors_are_not_taken_for_memory() -> None:
    assert is_out_of_memory(ON_DEVICE)
    assert is_out_of_memory(ON_HOST)
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried ..."))
    assert not is_out_of_memory(RuntimeError("shape '[2, 3]' is invalid for input of size 5"))
    model = FAMILIES["llama"].build()
    limit(model, 2, RuntimeError("a bug"), "in the forward pass")
    with pytest.raises(CaptureError, match="LlamaForCausalLM fails: a bug"):
        run_report(model, EXAMPLES, settings())


@pytest.mark.parametrize(
    ("name", "bootstrap", "sketch_size"),
    [*((name, 10, 8) for name in FAMILIES), ("llama", 0, 64), ("mixtral", 0, 64)],
)
def test_sums_take_the_memory_that_was_predicted(
    name: str, sketch_size: int, bootstrap: int
) -> None:
    model, run = FAMILIES[name].build(), settings(bootstrap=bootstrap, groups=2, batch_size=16)
    items = candidates_of(find_modules(model, run.candidates))
    probes = probe_set(model, completions(6), run)
    needs = predict(model, items, probes, run.capture, sketch_size=sketch_size, itemsize=4)
    groups = (len(probes.halves[0]), len(probes.halves[1])) if bootstrap else None
    tests = TestMatrices(size=sketch_size, seed=0)
    exact = ExactGradients(items, tests, groups=groups)
    sketch = SketchGradients(items, tests, groups=groups)
    tapped = observed_sources(model, items, probes.halves[0][0][0].input_ids[:8])
    for gradients, sources in ((exact, weight_sources(model, items)), (sketch, tapped)):
        ProbeRun(
            model=model, probes=probes, gradients=gradients, sources=sources, settings=run.capture
        ).run()
    sums, sketches = (
        sum(tensor.nbytes for tensor in kept.tensors.values()) for kept in (exact, sketch)
    )
    assert sums == needs.exact_sums == needs.sums("exact")
    drawn = {max(i.out_features, i.in_features) for i in items}
    omegas = sum(4 * width * sketch_size for width in drawn if tests.columns(width) < width)
    formed = [
        item.n_params
        for item in items
        if item.module in tapped.weights and not item.module.endswith("dt_proj")
    ]
    assert sketches == needs.sketch_sums == needs.sums("sketch")
    expected = omegas + 2 * 4 * max(formed, default=0)
    biases = 2 * 4 * 300  # n_params counts them
    assert expected - biases <= needs.sketch_work <= expected
    on_device = needs.on_device("exact", sums_on_host=False)
    assert on_device >= sums + needs.largest_gradient
    assert on_device - needs.on_device("exact", sums_on_host=True) == sums


def choose(
    free: int, monkeypatch: pytest.MonkeyPatch, run: RankSettings, *, packed: bool = False
) -> EstimatorChoice:
    """The choice with some free memory."""
    model = FAMILIES["llama"].build()
    monkeypatch.setattr(estimator, "free_bytes", lambda _: free)
    return choose_estimator(
        model,
        candidates_of(find_modules(model, run.candidates)),
        probe_set(model, EXAMPLES, run),
        run,
        device=CPU,
        reserved_bytes=0,
        itemsize=4,
        packed=packed,
    )


def test_exact_gradients_are_taken_while_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = choose(0, monkeypatch, settings()).needs.on_device("exact", sums_on_host=False)
    limit, needed = int(wanted / 0.9), memory(wanted)
    free = memory(limit + 2)
    for found, starts in (
        (
            choose(limit + 2, monkeypatch, settings()),
            f"exact: it needs {needed} besides the weights, and {free} are free",
        ),
        (
            choose(limit - 2, monkeypatch, settings()),
            f"sketch: exact does not fit, it needs {needed}",
        ),
        (choose(2**60, monkeypatch, settings(), packed=True), "sketch: quantized, offloaded or"),
    ):
        assert found.reason.startswith(starts)
        assert found.estimator == starts.partition(":")[0]
        assert found.sketch_size == {"exact": 64, "sketch": 128}[found.estimator]


@pytest.mark.parametrize("score", ["taylor", "l1_adam"])
def test_scores_of_single_entries_need_gradients(score: str) -> None:
    run = replace(settings(estimator="sketch"), plan=PlanSettings(score=score, rank=3))
    with pytest.raises(UsageError, match=f"'{score}' needs whole gradients: sketch") as found:
        run_report("llama", EXAMPLES, run)
    assert "--estimator exact" in (found.value.hint or "")


def test_on_a_cpu_sums_on_the_host_are_counted_with_the_others() -> None:
    model = FAMILIES["llama"].build()
    asked = (
        settings(estimator="exact", bootstrap=20),
        settings(estimator="exact", bootstrap=20, accumulate_on="host"),
    )
    found, other = (forecast(model, byte_tokenizer(), EXAMPLES, run, CPU) for run in asked)
    assert found.gradient_bytes == other.gradient_bytes
    assert found.disk_bytes == other.disk_bytes == found.choice.needs.exact_sums
    assert 0 < found.disk_bytes < found.gradient_bytes
    assert not asked[1].capture.sums_on_host("cpu")
    assert asked[1].capture.sums_on_host("cuda")


def test_packed_weights_hold_no_exact_gradients() -> None:
    model = FAMILIES["llama"].build()
    items = candidates_of(find_modules(model, settings().candidates))
    packed = (*items[:3], replace(items[3], quantized=True))
    with pytest.raises(CaptureError, match=rf"'{items[3].module}' is quantized"):
        weight_sources(model, packed)


@pytest.mark.parametrize(
    ("own", "folder", "limit", "used", "cached"),
    [
        ("0::/\n", ".", "max", "current", "inactive_file"),
        # A job of SLURM: the limit is on a group around that of the step.
        ("0::/job_1/step_0\n", "job_1", "max", "current", "inactive_file"),
        ("9:memory:/docker/1\n", "memory", "limit_in_bytes", "usage_in_bytes",
         "total_inactive_file"),
    ],
)  # fmt: skip
def test_free_memory_is_within_the_limits_of_control_groups(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    own: str, folder: str, limit: str, used: str, cached: str,
) -> None:  # fmt: skip
    assert free_bytes(CPU) > 0
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr("hlscore.control_groups._OWN", tmp_path / "own")
    monkeypatch.setattr("hlscore.control_groups._MOUNT", tmp_path)
    whole, group = free_bytes(CPU), tmp_path / folder
    group.mkdir(exist_ok=True)
    (group / f"memory.{limit}").write_text("5000\n")
    (group / f"memory.{used}").write_text("3000\n")
    assert free_bytes(CPU) == 2000
    (group / "memory.stat").write_text(f"anon 1900\n{cached} 1000\n")
    assert free_bytes(CPU) == 3000
    (group / f"memory.{used}").write_text("7000\n")
    assert free_bytes(CPU) == 0
    (group / f"memory.{limit}").write_text("max\n")
    assert free_bytes(CPU) > 0.5 * whole
