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
    return Sources(weights={item.module: _at_hand(model, item) for item in candidates})


def tapped_sources(
    model: PreTrainedModel, candidates: Sequence[Candidate], input_ids: Sequence[int]
) -> Sources:
    """Tap inputs and outputs wherever they can be seen, and form the other gradients.

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
    shared = _shared_parameters(model)
    maps = {
        item.module: owners[item.module]
        for item in candidates
        if _is_linear_map(owners[item.module], item) and item.parameter not in shared
    }
    ids = torch.tensor([list(input_ids)], device=input_device(model))
    called = _try_out(model, maps, ids) if maps else set()
    experts: dict[int, tuple[nn.Module, dict[str, str]]] = {}
    weights = {}
    for item in candidates:
        owner = owners[item.module]
        if item.module in called or (item.quantized and item.module in maps):
            continue
        maps.pop(item.module, None)
        if item.form == "experts" and is_fused_experts(owner):
            named = experts.setdefault(id(owner), (owner, {}))[1]
            named[item.parameter.rpartition(".")[2]] = item.module
        else:
            weights[item.module] = _at_hand(model, item)
    return Sources(weights=weights, maps=maps, experts=tuple(experts.values()))


def _at_hand(model: PreTrainedModel, item: Candidate) -> nn.Parameter:
    state = "quantized" if item.quantized else _elsewhere(model.get_parameter(item.parameter))
    if state:
        raise CaptureError(
            f"The weight of '{item.module}' is {state} and can hold no gradient.",
            hint="Use --estimator sketch, which forms none but of weights that are used outside "
            "linear layers; leave those out with --exclude.",
        )
    parameter: nn.Parameter = model.get_parameter(item.parameter)
    return parameter


def _try_out(
    model: PreTrainedModel, maps: dict[str, nn.Module], input_ids: torch.Tensor
) -> set[str]:
    try:
        return called_modules(model, maps, input_ids)
    except (RuntimeError, AssertionError) as error:
        raise CaptureError(
            f"A forward pass of {type(model).__name__} fails: {first_line(error)}",
            hint="Where the weights are quantized, some layers may compute with them directly: "
            "load the model without --load-in.",
        ) from error


def out_of_reach(model: PreTrainedModel, item: Candidate) -> LeftOut:
    """Why the gradient of a module can neither be formed nor seen; empty for nearly all."""
    if item.quantized or not formed_gradients(model, item):
        return ""
    return _elsewhere(model.get_parameter(item.parameter))


def _elsewhere(parameter: nn.Parameter) -> Literal["", "offloaded", "sharded"]:
    """Where a weight is if it is not at hand; empty if it is."""
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


def _shared_parameters(model: PreTrainedModel) -> set[str]:
    named = list(model.named_parameters(remove_duplicate=False))
    uses = Counter(id(parameter) for _, parameter in named)
    return {name for name, parameter in named if uses[id(parameter)] > 1}
