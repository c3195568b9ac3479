"""Weights in memory, however they are kept: tied, packed, offloaded, sharded or plain.

Quantization libraries put a module of their own in the place of a linear layer. It keeps
`in_features` and `out_features`, but its weight is packed integers, an 8-bit float or a tensor
type of the library's own. Those libraries are imported only to unpack a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from hlscore.records import Candidate

_PLAIN_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds ordinary floating-point numbers; sharded ones count too."""
    wrapped = is_traceable_wrapper_subclass(tensor) and not hasattr(tensor, "full_tensor")
    return tensor.dtype in _PLAIN_DTYPES and not wrapped


def is_packed_linear(module: nn.Module) -> bool:
    """Whether a module names its features in and out, but has no plain weight of that size."""
    rows, columns = (getattr(module, name, None) for name in ("out_features", "in_features"))
    if not isinstance(rows, int) or not isinstance(columns, int):
        return False
    weight = module._parameters.get("weight")
    if weight is None:
        own: list[torch.Tensor | None] = [*module._parameters.values(), *module._buffers.values()]
        return any(tensor is not None and not is_plain(tensor) for tensor in own)
    # bitsandbytes can store 4-bit weights as bfloat16: then only the size gives them away.
    odd_size = weight.dim() <= 2 and weight.numel() not in (0, rows * columns)
    return odd_size or not is_plain(weight)


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether weights of a model are spread over several processes."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def tied_names(model: PreTrainedModel) -> Mapping[str, str]:
    """The name that each tied parameter is tied to; offloaded ones are not the same object."""
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return tied


def weight_ids(model: PreTrainedModel) -> dict[str, int]:
    """A number for each parameter by its name, the same for all names of one weight."""
    tied, held = tied_names(model), dict(model.named_parameters(remove_duplicate=False))
    # Placeholders of offloaded weights are one for each name.
    return {
        name: id(held.get(tied.get(name, ""), weight) if weight.is_meta else weight)
        for name, weight in held.items()
    }


@torch.no_grad()
def dense_weight(model: PreTrainedModel, item: Candidate) -> torch.Tensor | None:
    """The weight of one candidate as an ordinary floating-point tensor, in its own layout.

    A plain weight shares its memory. An offloaded one is read onto the host; the model keeps its
    placeholder. Weights of bitsandbytes are dequantized (8 bits to float32, 4 bits to the dtype
    they were made from). Weights sharded by FSDP2 are gathered: every rank must call this, in the
    same order. `None` where it cannot be read, as with the packed integers of GPTQ or AWQ.
    """
    module_name, _, leaf = item.parameter.rpartition(".")
    module = model.get_submodule(module_name)
    parameter = module._parameters.get(leaf)
    if parameter is None:
        return None
    state = getattr(parameter, "quant_state", None) or getattr(module, "quant_state", None)
    found: Any = None
    if parameter.is_meta:
        source = None if is_packed_linear(module) else offload_source(model, item.parameter)
        found = None if source is None else source[0].get(source[1])
        found = None if isinstance(found, torch.Tensor) and found.is_meta else found
    elif state is not None:  # 4 bits of bitsandbytes
        import bitsandbytes.functional

        if not getattr(state, "packing_format_for_cpu", False):
            found = bitsandbytes.functional.dequantize_4bit(parameter.data, state)
    elif parameter.dtype == torch.int8 and type(parameter).__name__ == "Int8Params":
        import bitsandbytes.functional

        # The scales move from the weight to the state of the module in its first forward pass.
        holders = (parameter, getattr(module, "state", None))
        places = (getattr(holder, "SCB", None) for holder in holders)
        scales = next((each for each in places if each is not None), None)
        if scales is not None:
            found = bitsandbytes.functional.int8_vectorwise_dequant(parameter.data, scales)
    elif hasattr(parameter, "full_tensor"):
        found = parameter.full_tensor().detach()
    elif is_plain(parameter):
        found = None if is_packed_linear(module) else parameter.detach()
    # A library's own tensor type, such as torchao's; plain integers have no scale.
    elif type(parameter.data) is not torch.Tensor and hasattr(parameter.data, "dequantize"):
        found = parameter.data.dequantize()
    if not isinstance(found, torch.Tensor) or not is_plain(found):
        return None
    # Packed weights are always [out, in], also those made from a `Conv1D`.
    return found.T if item.quantized and item.storage == "in_out" else found


def accelerate_hooks(module: nn.Module) -> tuple[Any, ...]:
    """The hooks that accelerate put on a module, unpacked where several were chained."""
    hook = getattr(module, "_hf_hook", None)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def offload_source(model: PreTrainedModel, parameter: str) -> tuple[Any, str] | None:
    """The store of accelerate that holds an offloaded parameter, and its name there."""
    owner, _, _ = parameter.rpartition(".")
    while True:
        for hook in accelerate_hooks(model.get_submodule(owner)):
            store = getattr(hook, "weights_map", None)
            if getattr(hook, "offload", False) and store is not None:
                return store, parameter[len(owner) + 1 :] if owner else parameter
        if not owner:
            return None
        owner, _, _ = owner.rpartition(".")
