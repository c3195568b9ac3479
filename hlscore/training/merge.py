"""One plain model out of a trained one, for serving."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from hlscore.errors import UsageError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel


# Below it the warning is given: what is lost then changes what was learned.
_ENOUGH_KEPT = 0.99


def merge(model: PeftModel, *, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """Merge adapters and trained copies into the base model.

    Adapters are added in float32 and the sum is rounded once; trained copies that were held in
    float32 get the dtype of the weights that they replace. A warning says how much of the change
    is left where rounding loses some: after a short training in bfloat16 most of it.

    Args:
        model: A trained model. It is used up: its base model becomes the result.
        dtype: Dtype of the result, such as `"float32"`, which loses nothing; `None` means that of
            the base model.

    Returns:
        A model without adapters, in evaluation mode; `save_pretrained` writes what
        `from_pretrained` reads without PEFT.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if not isinstance(model, PeftModel):
        raise UsageError(f"A {type(model).__name__} has nothing to merge.")
    if getattr(model.get_base_model(), "is_quantized", False):
        raise UsageError(
            "Merging into a quantized model would round what was trained.",
            hint="Load the base model in bfloat16, put the saved adapter on it, and merge that.",
        )
    wanted = None if dtype is None else _float_type(dtype)
    kept = {
        "full modules": _round_copies(model, wanted),
        "adapters": _merge_adapters(model, wanted),
    }
    merged: Any = model.unload()
    for name, module in merged.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            raise UsageError(f"PEFT left an adapter at '{name}'.")
    _settle_ties(merged)
    if wanted is not None:
        merged.to(wanted)
    if any(getattr(module, "gradient_checkpointing", False) for module in merged.modules()):
        merged.gradient_checkpointing_disable()
    merged.requires_grad_(True)  # as after from_pretrained
    _warn_of_rounding(kept)
    plain: PreTrainedModel = merged.eval()
    return plain


def _float_type(dtype: torch.dtype | str) -> torch.dtype:
    import torch

    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise UsageError(
            f"dtype is '{dtype}'.", hint="Use float32, bfloat16 or float16, or remove it."
        )
    return found


def _round_copies(model: nn.Module, wanted: torch.dtype | None) -> list[float]:
    """Give trained copies the wanted dtype, by default that of the weights that they replace.

    Returns for each weight that was rounded the share of its change that is left.
    """
    from peft.utils import ModulesToSaveWrapper

    kept = []
    for wrapper in model.modules():
        if not isinstance(wrapper, ModulesToSaveWrapper):
            continue
        originals = dict(wrapper.original_module.named_parameters())
        for copy in wrapper.modules_to_save.values():
            for name, parameter in copy.named_parameters():
                rounded = parameter.data.to(wanted or originals[name].dtype)
                if rounded.dtype != parameter.dtype:
                    kept += _kept(originals[name].data, parameter.data, rounded)
                parameter.data = rounded
    return kept


def _merge_adapters(model: nn.Module, wanted: torch.dtype | None) -> list[float]:
    """Add each adapter to its weight in float32, one layer at a time to save memory.

    Returns for each weight that was rounded the share of its change that is left.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    kept = []
    for layer in list(model.modules()):
        if not isinstance(layer, BaseTunerLayer):
            continue
        base = layer.get_base_layer()
        before = {
            name: (item.data, item.dtype) for name, item in base.named_parameters(recurse=False)
        }
        for parameter in base.parameters(recurse=False):
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        layer.merge(safe_merge=False)
        for name, parameter in base.named_parameters(recurse=False):
            weight, dtype = before[name]
            rounded = parameter.data.to(wanted or dtype)
            if rounded.dtype != parameter.dtype:
                kept += _kept(weight, parameter.data, rounded)
            parameter.data = rounded
    return kept


def _kept(before: torch.Tensor, after: torch.Tensor, rounded: torch.Tensor) -> list[float]:
    """Share of a change that rounding leaves: its projection on the change; empty without one."""
    change = after.float() - before.to(after.device).float()
    energy = float(change.square().sum())
    if energy == 0:
        return []
    left = rounded.float() - before.to(after.device).float()
    return [float((left * change).sum()) / energy]


def _warn_of_rounding(kept: Mapping[str, list[float]]) -> None:
    medians = {name: median(shares) for name, shares in kept.items() if shares}
    if all(share >= _ENOUGH_KEPT for share in medians.values()):
        return
    said = " and ".join(f"{100 * share:.3g} % of that of {name}" for name, share in medians.items())
    warnings.warn(
        f"Rounding to 16 bits keeps this much of the change (median over weights): {said}. Merge "
        "with dtype='float32' to keep all of it.",
        stacklevel=3,
    )


def _settle_ties(model: Any) -> None:
    """Make the configuration say what is true of the embeddings, now that copies replaced them."""
    import torch

    text = model.config.get_text_config()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not getattr(text, "tie_word_embeddings", False) or head is None:
        return
    if torch.equal(head.weight, embedding.weight):
        model.tie_weights()
        return
    text.tie_word_embeddings = model.config.tie_word_embeddings = False
