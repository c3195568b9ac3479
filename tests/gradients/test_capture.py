"""The context that owns every hook."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES, token_batch
from problems import completions, run_report, settings
from torch import nn

from hlscore.errors import CaptureError
from hlscore.gradients.capture import GradientCapture
from hlscore.gradients.sources import Sources


class BrokenError(Exception):
    """Raised in the middle of a run."""


# In the trial pass, in the forward pass, in the recomputation of the backward pass, and later on.
@pytest.mark.parametrize("number", [1, 2, 3, 9])
@pytest.mark.parametrize("estimator", ["exact", "sketch"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "jamba"])
def test_exception_inside_a_block_leaves_nothing(name: str, estimator: str, number: int) -> None:
    """As after every test here, a fixture finds the model as it was."""
    model, calls = FAMILIES[name].build(), []

    def failing(*args: Any) -> None:
        calls.append(args)
        if len(calls) == number:
            raise BrokenError

    block = FAMILIES[name].block_list(model)[1]
    [*block.modules()][-1].register_forward_pre_hook(failing)
    with pytest.raises(BrokenError):
        run_report(model, completions(12), settings(estimator=estimator))
    run_report(model, completions(6), settings(estimator=estimator))


@pytest.mark.parametrize("estimator", ["exact", "sketch"])
def test_own_flags_gradients_and_forwards_are_given_back(estimator: str) -> None:
    model = FAMILIES["llama"].build()
    model.train()
    model.model.layers[0].mlp.eval()
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    kept = weight.grad = torch.full_like(weight, 7.0)
    model.lm_head.weight.requires_grad_(False)
    block = model.model.layers[1]
    own = block.forward
    block.forward = own
    run_report(model, completions(6), settings(estimator=estimator))
    assert weight.grad is kept
    assert bool((weight.grad == 7).all())
    assert model.training
    assert not model.model.layers[0].mlp.training
    assert not model.lm_head.weight.requires_grad
    assert block.__dict__["forward"] is own


def test_only_captured_weights_get_gradients_and_keep_none() -> None:
    model = FAMILIES["llama"].build()
    name = "model.layers.0.mlp.up_proj"
    weight = model.get_parameter(f"{name}.weight")
    seen: list[tuple[str, torch.Size]] = []
    received = SimpleNamespace(add=lambda name, gradient: seen.append((name, gradient.shape)))
    with GradientCapture(model, Sources(weights={name: weight}), received):
        model(**token_batch()).logits.sum().backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        assert [p.requires_grad for p in model.parameters()].count(True) == 1
    assert seen == [(name, weight.shape)]


def test_experts_implementation_is_given_back() -> None:
    model = FAMILIES["mixtral"].build(experts_implementation="grouped_mm")
    run_report(model, completions(6), settings(estimator="sketch"))
    assert model.config._experts_implementation == "grouped_mm"


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


def test_weights_with_an_optimizer_in_backward_are_refused() -> None:
    model = FAMILIES["llama"].build()
    weight = model.get_parameter("model.layers.1.mlp.up_proj.weight")
    weight.register_post_accumulate_grad_hook([].append)
    with pytest.raises(CaptureError, match="has a hook of its own"):
        run_report(model, completions(6), settings())


@pytest.mark.parametrize("estimator", ["exact", "sketch"])
def test_gradients_flow_inside_no_grad(estimator: str) -> None:
    model, run = FAMILIES["qwen3_moe"].build(), settings(estimator=estimator)
    expected = run_report(model, completions(6), run)
    with torch.no_grad():
        assert run_report(model, completions(6), run).rows == expected.rows
    with torch.inference_mode():
        assert run_report(model, completions(6), run).rows == expected.rows
