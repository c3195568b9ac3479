"""The forward pass of fused experts, with each of their linear maps observed.

Transformers lets a function take over the forward pass of a module of fused experts
(`ExpertsInterface`); this one does what the library's own do and shows the sorted inputs and the
outputs of each weight on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

# Attribute of the weight, its inputs, its outputs, and rows of each expert.
ExpertObserver = Callable[[str, torch.Tensor, torch.Tensor, list[int]], torch.Tensor]


def is_fused_experts(module: nn.Module) -> bool:
    """Whether a module takes its forward pass from transformers' `ExpertsInterface`."""
    marks = ("has_gate", "is_transposed", "num_experts", "_apply_gate", "down_proj")
    return all(hasattr(module, mark) for mark in marks)


def experts_forward(
    module: Any,
    observe: ExpertObserver,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """Send each token through its experts, [tokens, hidden].

    Args:
        observe: Called with each linear map's attribute, inputs [rows, in], outputs [rows, out] and
            rows of each expert; rows come sorted by expert. What it returns replaces the outputs.
        top_k_index: Experts of each token, int [tokens, k]; `num_experts` means none.
    """
    tokens, top_k = top_k_index.shape
    ids, order = torch.sort(top_k_index.reshape(-1), stable=True)
    counts: list[int] = torch.bincount(ids, minlength=module.num_experts).tolist()
    counts = counts[: module.num_experts]
    ids = ids.clamp(max=module.num_experts - 1)

    def linear(leaf: str, inputs: torch.Tensor) -> torch.Tensor:
        weight = getattr(module, leaf)
        weight = weight if module.is_transposed else weight.mT
        output = observe(leaf, inputs, grouped_product(inputs, weight, counts), counts)
        bias = getattr(module, f"{leaf}_bias")[ids] if module.has_bias else None
        return output if bias is None else output + bias

    if module.has_gate:
        hidden = module._apply_gate(linear("gate_up_proj", hidden_states[order // top_k]))
    else:
        hidden = module.act_fn(linear("up_proj", hidden_states[order // top_k]))
    out = linear("down_proj", hidden)
    if getattr(module, "has_post_expert_norm", False):
        out = module.post_expert_norm(out)
    reached = torch.arange(len(order), device=order.device) < sum(counts)
    out = torch.where(reached[:, None], out * top_k_weights.reshape(-1)[order, None], 0)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return out[place].reshape(tokens, top_k, -1).sum(1).to(hidden_states.dtype)


def grouped_product(inputs: torch.Tensor, weight: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Multiply rows [rows, in], sorted by expert, with the matrix of their expert: [rows, out].

    Args:
        weight: [E, in, out].
        counts: Rows of each expert; rows beyond them are given zeros.
    """
    rest = len(inputs) - sum(counts)
    if weight.is_cuda and weight.dtype == torch.bfloat16 and not rest:
        ends = torch.tensor(counts, device=inputs.device).cumsum(0, dtype=torch.int32)
        grouped: torch.Tensor = functional.grouped_mm(inputs.to(weight.dtype), weight, offs=ends)
        return grouped
    parts = [
        part.to(weight.dtype) @ weight[index]
        for index, part in enumerate(torch.split(inputs, [*counts, rest])[:-1])
        if len(part)
    ]
    return torch.cat([*parts, weight.new_zeros(rest, weight.shape[-1])])
