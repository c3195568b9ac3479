"""Packed weights: recognizing linear maps whose weight is no ordinary matrix.

Quantization libraries put a module of their own in the place of a linear layer. It keeps
`in_features` and `out_features`, but its weight is packed integers, an 8-bit float or a tensor
type of the library's own. Nothing of those libraries is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_PLAIN_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor holds ordinary floating-point numbers; sharded ones count too."""
    wrapped = is_traceable_wrapper_subclass(tensor) and not hasattr(tensor, "full_tensor")
    return tensor.dtype in _PLAIN_DTYPES and not wrapped


def is_packed_linear(module: nn.Module) -> bool:
    """Tell whether a module is a linear map with a packed weight.

    Returns:
        Whether it says how many features go in and out, but has no plain weight of that size.
    """
    sizes = [getattr(module, name, None) for name in ("out_features", "in_features")]
    rows, columns = sizes
    if not isinstance(rows, int) or not isinstance(columns, int):
        return False
    weight = module._parameters.get("weight")
    if weight is None:
        own: list[torch.Tensor | None] = [*module._parameters.values(), *module._buffers.values()]
        return any(tensor is not None and not is_plain(tensor) for tensor in own)
    # bitsandbytes can store 4-bit weights as bfloat16: then only the size gives them away.
    odd_size = weight.dim() <= 2 and weight.numel() not in (0, rows * columns)
    return odd_size or not is_plain(weight)


def was_transposed(module: nn.Module) -> bool:
    """Tell whether a packed linear map stands for one that was stored `[in, out]`."""
    source = getattr(module, "source_cls", None)
    return isinstance(source, type) and issubclass(source, Conv1D)


def tied_names(model: PreTrainedModel) -> Mapping[str, str]:
    """Map the name of each tied parameter to the name of the one it is tied to.

    Needed where tied parameters are not the same object: offloaded ones lose that.
    """
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return tied


def count_params(model: PreTrainedModel) -> int:
    """Count the parameters of a model as if none were packed.

    Returns:
        Number of parameters; tied ones count once.
    """
    tied, seen, total = tied_names(model), set[int | str](), 0
    for module_name, module in model.named_modules():
        packed = is_packed_linear(module)
        if packed:
            bias = getattr(module, "bias", None)
            total += int(module.out_features) * int(module.in_features)
            total += bias.numel() if isinstance(bias, torch.Tensor) else 0
        for leaf, parameter in module._parameters.items():
            name = f"{module_name}.{leaf}" if module_name else leaf
            if packed or parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if parameter.is_meta and tied.get(name) in seen:
                continue
            seen.add(name)
            total += parameter.numel()
    return total
