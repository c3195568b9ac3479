"""Where each module's gradient comes from: its weight, or its input and output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hlscore.errors import CaptureError, first_line
from hlscore.gradients.capture import Sources, called_modules
from hlscore.gradients.experts import is_fused_experts
from hlscore.inputs.model import input_device
from hlscore.reasons import LeftOut
from hlscore.records import Candidate


def weight_sources(model: PreTrainedModel, candidates: Sequence[Candidate]) -> Sources:
    """Take every gradient at its weight, for the exact estimator."""
    return Sources(weights={item.module: _trainable(model, item) for item in candidates})


def observed_sources(
    model: PreTrainedModel, candidates: Sequence[Candidate], input_ids: Sequence[int]
) -> Sources:
    """Observe linear maps wherever that can be done, and form the other gradients.

    Formed are those of routers and other modules that compute with their weight themselves, of
    weights that several modules hold, of linear maps whose forward is never called, and of fused
    experts that do not use transformers' `ExpertsInterface`.

    Args:
        model: The model; comes back as it was.
        input_ids: A few tokens, for a trial forward pass.
    """
    owners = {
        item.module: model.get_submodule(item.parameter.rpartition(".")[0]) for item in candidates
    }
    parameters = list(model.named_parameters(remove_duplicate=False))
    holders = Counter(id(parameter) for _, parameter in parameters)
    shared = {name for name, parameter in parameters if holders[id(parameter)] > 1}
    maps = {
        item.module: owners[item.module]
        for item in candidates
        if _is_linear_map(owners[item.module], item) and item.parameter not in shared
    }
    ids = torch.tensor([list(input_ids)], device=input_device(model))
    try:
        called = called_modules(model, maps, ids) if maps else set()
    except (RuntimeError, AssertionError) as error:
        raise CaptureError(
            f"A forward pass of {type(model).__name__} fails: {first_line(error)}",
            hint="Where the weights are quantized, some layers may compute with them directly: "
            "load the model without --load-in.",
        ) from error
    experts: dict[int, tuple[nn.Module, dict[str, str]]] = {}
    weights = {}
    for item in candidates:
        owner = owners[item.module]
        if item.module in called or (item.quantized and item.module in maps):
            continue
        maps.pop(item.module, None)
        if item.form == "experts" and is_fused_experts(owner):
            _, modules = experts.setdefault(id(owner), (owner, {}))
            modules[item.parameter.rpartition(".")[2]] = item.module
        else:
            weights[item.module] = _trainable(model, item)
    return Sources(weights=weights, maps=maps, experts=tuple(experts.values()))


def _trainable(model: PreTrainedModel, item: Candidate) -> nn.Parameter:
    state = "quantized" if item.quantized else _elsewhere(model.get_parameter(item.parameter))
    if state:
        raise CaptureError(
            f"The weight of '{item.module}' is {state} and can hold no gradient.",
            hint="Use --estimator sketch, which forms none but of weights that are used outside "
            "linear layers; leave those out with --exclude.",
        )
    parameter: nn.Parameter = model.get_parameter(item.parameter)
    return parameter


def out_of_reach(model: PreTrainedModel, item: Candidate) -> LeftOut:
    """Why the gradient of a module can neither be formed nor observed; empty for nearly all."""
    if item.quantized or not formed_gradients(model, item):
        return ""
    return _elsewhere(model.get_parameter(item.parameter))


def _elsewhere(parameter: nn.Parameter) -> Literal["", "offloaded", "sharded"]:
    """Where a weight is if it is not on a device of this process; empty if it is."""
    if parameter.is_meta:
        return "offloaded"
    return "sharded" if hasattr(parameter, "full_tensor") else ""


def formed_gradients(model: PreTrainedModel, item: Candidate) -> bool:
    """Whether the sketch estimator forms the gradient of a module, told without a trial pass."""
    owner = model.get_submodule(item.parameter.rpartition(".")[0])
    fused = item.form == "experts" and is_fused_experts(owner)
    return not (fused or _is_linear_map(owner, item))


def _is_linear_map(owner: nn.Module, item: Candidate) -> bool:
    # Not isinstance: routers derived from nn.Linear compute more than its product.
    return item.quantized or type(owner).forward in (nn.Linear.forward, Conv1D.forward)
