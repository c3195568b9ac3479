"""The context that owns every hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import footprint
from families import FAMILIES, token_batch
from problems import completions, run_report, settings
from torch import nn

from hlscore.errors import CaptureError
from hlscore.gradients import probe_run
from hlscore.gradients.capture import GradientCapture


class BrokenError(Exception):
    """Raised in the middle of a run."""


@pytest.mark.parametrize("name", list(FAMILIES))
def test_exception_in_the_middle_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES[name].build()
    before, calls = footprint(model), []

    def failing(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise BrokenError
        return real(*args)

    real = probe_run._run_batch
    monkeypatch.setattr(probe_run, "_run_batch", failing)
    with pytest.raises(BrokenError):
        run_report(model, completions(12), settings())
    assert footprint(model) == before


def test_own_flags_gradients_and_forwards_are_given_back() -> None:
    model = FAMILIES["llama"].build()
    model.train()
    model.model.layers[0].mlp.eval()
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    kept = weight.grad = torch.full_like(weight, 7.0)
    model.lm_head.weight.requires_grad_(False)
    block = model.model.layers[1]
    own = block.forward
    block.forward = own
    run_report(model, completions(6), settings())
    assert weight.grad is kept
    assert bool((weight.grad == 7).all())
    assert model.training
    assert not model.model.layers[0].mlp.training
    assert not model.lm_head.weight.requires_grad
    assert block.__dict__["forward"] is own


def test_only_captured_weights_get_gradients_and_keep_none() -> None:
    model = FAMILIES["llama"].build()
    name = "model.layers.0.mlp.up_proj"
    seen: list[tuple[str, torch.Size]] = []
    capture = GradientCapture(
        model,
        {name: model.get_parameter(f"{name}.weight")},
        lambda module, gradient: seen.append((module, gradient.shape)),
    )
    with capture:
        model(**token_batch()).logits.sum().backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        assert [p.requires_grad for p in model.parameters()].count(True) == 1
    assert seen == [(name, model.get_parameter(f"{name}.weight").shape)]


def test_dropout_is_off() -> None:
    family = FAMILIES["gpt2"]
    config = family.config()
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.5
    torch.manual_seed(0)
    model = family.auto_class.from_config(config).train()
    first = run_report(model, completions(6), settings())
    second = run_report(model, completions(6), settings())
    assert first.rows == second.rows
    assert model.training


def test_weights_of_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = FAMILIES["llama"].build()
        copied = nn.Module.to(model, torch.float64)
    with pytest.raises(CaptureError, match="can hold no gradient"):
        run_report(copied, completions(6), settings())


def test_gradients_flow_inside_no_grad() -> None:
    model = FAMILIES["llama"].build()
    expected = run_report(model, completions(6), settings())
    with torch.no_grad():
        assert run_report(model, completions(6), settings()).rows == expected.rows


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: not enough memory")],
)
def test_out_of_memory_is_one_clear_error(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(probe_run, "_run_batch", failing)
    with pytest.raises(CaptureError, match="ran out of memory with batches of 4"):
        run_report(FAMILIES["llama"].build(), completions(6), settings())
