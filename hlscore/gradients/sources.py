"""Where each module's gradient comes from: its weight, or its input and output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hlscore.errors import CaptureError, first_line
from hlscore.gradients.experts import is_fused_experts
from hlscore.gradients.passes import frozen
from hlscore.inputs.model import input_device
from hlscore.records import Candidate

# What computes the product with its weight and nothing else.
PLAIN_FORWARDS = (nn.Linear.forward, Conv1D.forward)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the gradients of the captured modules come from."""

    # By module name: weights whose gradient is formed, and linear maps whose input and output
    # gradient are observed.
    weights: Mapping[str, nn.Parameter] = field(default_factory=dict)
    maps: Mapping[str, nn.Module] = field(default_factory=dict)
    # Fused experts that are observed, with the module names of their weights by attribute.
    experts: Sequence[tuple[nn.Module, Mapping[str, str]]] = ()


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
    """
    parameters = list(model.named_parameters(remove_duplicate=False))
    holders = Counter(id(parameter) for _, parameter in parameters)
    shared = {name for name, parameter in parameters if holders[id(parameter)] > 1}
    observed = {item.module: observed_as(model, item) for item in candidates}
    maps = {
        item.module: model.get_submodule(item.parameter.rpartition(".")[0])
        for item in candidates
        if observed[item.module] == "map" and item.parameter not in shared
    }
    called = _called(model, maps, input_ids) if maps else set()
    experts: dict[int, tuple[nn.Module, dict[str, str]]] = {}
    weights = {}
    for item in candidates:
        if item.module in called or (item.quantized and item.module in maps):
            continue
        maps.pop(item.module, None)
        if observed[item.module] == "experts":
            path, _, leaf = item.parameter.rpartition(".")
            owner = model.get_submodule(path)
            experts.setdefault(id(owner), (owner, {}))[1][leaf] = item.module
        else:
            weights[item.module] = _trainable(model, item)
    return Sources(weights=weights, maps=maps, experts=tuple(experts.values()))


def _called(
    model: PreTrainedModel, modules: Mapping[str, nn.Module], input_ids: Sequence[int]
) -> set[str]:
    """Names of the modules that a forward pass calls; others may have their weight used directly.

    The model comes back as it was.
    """
    called: set[str] = set()
    # With gradients, because without them bitsandbytes rearranges 4-bit weights on some CPUs.
    with frozen(model, graph=True), torch.enable_grad(), ExitStack() as undo:
        for name, module in modules.items():
            hook = module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
            undo.callback(hook.remove)
        ids = torch.tensor([list(input_ids)], device=input_device(model))
        try:
            model(input_ids=ids, use_cache=False)
        except (RuntimeError, AssertionError) as error:
            raise CaptureError(
                f"A forward pass of {type(model).__name__} fails: {first_line(error)}",
                hint="Where the weights are quantized, some layers may compute with them directly: "
                "load the model without --load-in.",
            ) from error
    return called


def observed_as(model: PreTrainedModel, item: Candidate) -> Literal["", "map", "experts"]:
    """As what the sketch estimator can observe a module, judged without a trial pass.

    Empty where its gradient has to be formed.
    """
    owner = model.get_submodule(item.parameter.rpartition(".")[0])
    if item.form == "experts" and is_fused_experts(owner):
        return "experts"
    # Not isinstance: routers derived from nn.Linear compute more than its product.
    return "map" if item.quantized or type(owner).forward in PLAIN_FORWARDS else ""


def out_of_reach(model: PreTrainedModel, item: Candidate) -> Literal["", "offloaded", "sharded"]:
    """Why the gradient of a module can neither be formed nor observed; empty for nearly all."""
    return "" if observed_as(model, item) else _elsewhere(model.get_parameter(item.parameter))


def _trainable(model: PreTrainedModel, item: Candidate) -> nn.Parameter:
    state = "quantized" if item.quantized else _elsewhere(model.get_parameter(item.parameter))
    if state:
        raise CaptureError(
            f"The weight of '{item.module}' is {state} and can hold no gradient.",
            hint="Use --estimator sketch, which forms no gradient of a linear layer's weight; "
            "leave out weights that are used outside linear layers with --exclude.",
        )
    parameter: nn.Parameter = model.get_parameter(item.parameter)
    return parameter


def _elsewhere(parameter: nn.Parameter) -> Literal["", "offloaded", "sharded"]:
    """Where a weight is if it is not on a device of this process; empty if it is."""
    if parameter.is_meta:
        return "offloaded"
    return "sharded" if hasattr(parameter, "full_tensor") else ""
