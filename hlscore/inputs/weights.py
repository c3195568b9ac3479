"""The weight of a candidate as an ordinary tensor, wherever and however it is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hlscore.errors import ModelError
from hlscore.inputs.packed import is_packed_linear, is_plain
from hlscore.records import Candidate


@torch.no_grad()
def dense_weight(model: PreTrainedModel, item: Candidate) -> torch.Tensor | None:
    """Give the weight of one candidate as an ordinary floating-point tensor.

    A plain weight is returned as it is: detached, sharing its memory. A weight that accelerate
    offloads is read for the moment, onto the host; the model keeps its placeholder. Weights of
    bitsandbytes are dequantized (8 bits to float32, 4 bits to the dtype they were made from).
    Weights sharded by FSDP2 are gathered: then every rank must call this, in the same order.

    Returns:
        The weight in the layout of the candidate (`[out, in]`, `[in, out]` or
        `[matrices, ..., ...]`); `None` where it cannot be had, as with the packed integers of
        GPTQ or AWQ.
    """
    module_name, _, leaf = item.parameter.rpartition(".")
    module = model.get_submodule(module_name)
    parameter = module._parameters.get(leaf)
    if parameter is None:
        return None
    if parameter.is_meta:
        return None if is_packed_linear(module) else _offloaded(model, item.parameter)
    weight = _dense(module, parameter)
    # Packed weights are always [out, in], also those made from a `Conv1D`.
    transposed = item.quantized and item.storage == "in_out" and weight is not None
    return weight.T if transposed and weight is not None else weight


def is_offloaded(model: PreTrainedModel, parameter: str) -> bool:
    """Tell whether accelerate keeps a parameter on the host or on disk between forward passes."""
    return _offload_source(model, parameter) is not None


def accelerate_hooks(module: nn.Module) -> tuple[Any, ...]:
    """List the hooks that accelerate put on a module.

    Returns:
        The hooks, unpacked where several were chained; empty where there is none.
    """
    hook = getattr(module, "_hf_hook", None)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def check_4bit(model: PreTrainedModel, name: str) -> None:
    """Refuse 4-bit weights of bitsandbytes that would give wrong gradients or none."""
    for module_name, module in model.named_modules():
        weight = module._parameters.get("weight")
        state = getattr(weight, "quant_state", None)
        if weight is None or state is None:
            continue
        if getattr(state, "packing_format_for_cpu", False):
            raise ModelError(
                f"bitsandbytes has rearranged the 4-bit weights of '{name}' for inference on this "
                f"CPU ({module_name}): no gradient flows through them.",
                hint="Load the model again, and rank it before it generates anything.",
            )
        width = int(state.shape[-1])
        if weight.device.type == "cpu" and width % 2 == 0 and width % state.blocksize:
            raise ModelError(
                f"'{name}' cannot be used with 4 bits on a CPU: {module_name} has {width} inputs, "
                f"and bitsandbytes gets blocks of {state.blocksize} wrong that span two rows.",
                hint="Use --load-in 8bit, or a GPU.",
            )


def _offload_source(model: PreTrainedModel, parameter: str) -> tuple[Any, str] | None:
    """Find the store that holds an offloaded parameter, and its name there."""
    owner, _, _ = parameter.rpartition(".")
    while True:
        for hook in accelerate_hooks(model.get_submodule(owner)):
            store = getattr(hook, "weights_map", None)
            if getattr(hook, "offload", False) and store is not None:
                return store, parameter[len(owner) + 1 :] if owner else parameter
        if not owner:
            return None
        owner, _, _ = owner.rpartition(".")


def _offloaded(model: PreTrainedModel, parameter: str) -> torch.Tensor | None:
    source = _offload_source(model, parameter)
    if source is None:
        return None
    store, name = source
    try:
        found = store[name]
    except KeyError:
        return None
    usable = isinstance(found, torch.Tensor) and is_plain(found) and not found.is_meta
    return found if usable else None


def _dense(module: nn.Module, parameter: nn.Parameter) -> torch.Tensor | None:
    state = getattr(parameter, "quant_state", None) or getattr(module, "quant_state", None)
    if state is not None:
        return _dense_4bit(parameter, state)
    if parameter.dtype == torch.int8 and type(parameter).__name__ == "Int8Params":
        return _dense_8bit(module, parameter)
    if hasattr(parameter, "full_tensor"):
        gathered: torch.Tensor = parameter.full_tensor()
        return gathered.detach()
    if is_plain(parameter):
        return None if is_packed_linear(module) else parameter.detach()
    return _dense_subclass(parameter)


def _dense_4bit(parameter: nn.Parameter, state: Any) -> torch.Tensor | None:
    import bitsandbytes.functional

    if getattr(state, "packing_format_for_cpu", False):
        return None
    found: torch.Tensor = bitsandbytes.functional.dequantize_4bit(parameter.data, state)
    return found


def _dense_8bit(module: nn.Module, parameter: nn.Parameter) -> torch.Tensor | None:
    import bitsandbytes.functional

    # The scales move from the weight to the state of the module in its first forward pass.
    scales = getattr(parameter, "SCB", None)
    if scales is None:
        scales = getattr(getattr(module, "state", None), "SCB", None)
    if scales is None:
        return None
    found: torch.Tensor = bitsandbytes.functional.int8_vectorwise_dequant(parameter.data, scales)
    return found


def _dense_subclass(parameter: nn.Parameter) -> torch.Tensor | None:
    """Ask a library's own tensor type, such as torchao's; plain integers have no scale."""
    if type(parameter.data) is torch.Tensor or not hasattr(parameter.data, "dequantize"):
        return None
    found: torch.Tensor = parameter.data.dequantize()
    return found if is_plain(found) else None
