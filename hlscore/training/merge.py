"""One plain model out of a trained one, for serving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hlscore.errors import UsageError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel


def merge(model: PeftModel) -> PreTrainedModel:
    """Merge adapters and trained copies into the base model.

    Adapters are added in float32 and the sum is rounded once; trained copies that were held in
    float32 get the dtype of the weights that they replace.

    Args:
        model: A trained model. It is used up: its base model becomes the result.

    Returns:
        A model without adapters, in the dtype of the base model and in evaluation mode;
        `save_pretrained` writes what `from_pretrained` reads without PEFT.

    Raises:
        UsageError: The model has no adapter, or its base model is quantized.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise UsageError(f"A {type(model).__name__} has nothing to merge.")
    if getattr(model.get_base_model(), "is_quantized", False):
        raise UsageError(
            "Merging into a quantized model would round what was trained.",
            hint="Load the base model in bfloat16, put the saved adapter on it, and merge that.",
        )
    _round_copies(model)
    _merge_adapters(model)
    merged: Any = model.unload()
    _check_plain(merged)
    _settle_ties(merged)
    if any(getattr(module, "gradient_checkpointing", False) for module in merged.modules()):
        merged.gradient_checkpointing_disable()
    merged.requires_grad_(True)  # as after from_pretrained
    plain: PreTrainedModel = merged.eval()
    return plain


def _round_copies(model: nn.Module) -> None:
    """Give trained copies the dtypes of the weights that they replace."""
    from peft.utils import ModulesToSaveWrapper

    for wrapper in model.modules():
        if not isinstance(wrapper, ModulesToSaveWrapper):
            continue
        dtypes = {name: item.dtype for name, item in wrapper.original_module.named_parameters()}
        for copy in wrapper.modules_to_save.values():
            for name, parameter in copy.named_parameters():
                parameter.data = parameter.data.to(dtypes[name])


def _merge_adapters(model: nn.Module) -> None:
    """Add each adapter to its weight in float32, one layer at a time to save memory."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in list(model.modules()):
        if not isinstance(layer, BaseTunerLayer):
            continue
        base = layer.get_base_layer()
        dtypes = _to_float32(base)
        layer.merge(safe_merge=False)
        for name, parameter in base.named_parameters(recurse=False):
            parameter.data = parameter.data.to(dtypes[name])


def _to_float32(base: nn.Module) -> dict[str, torch.dtype]:
    import torch

    dtypes = {}
    for name, parameter in base.named_parameters(recurse=False):
        dtypes[name] = parameter.dtype
        if parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()
    return dtypes


def _check_plain(model: nn.Module) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            raise UsageError(f"PEFT left an adapter at '{name}'.")


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
