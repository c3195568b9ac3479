"""One plain model out of a trained one, for serving."""

from __future__ import annotations

import warnings
from statistics import median
from typing import TYPE_CHECKING, Any

from hlscore.errors import UsageError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
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
    import torch
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
    wanted: Any = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and not (
        isinstance(wanted, torch.dtype) and wanted.is_floating_point and wanted.itemsize > 1
    ):
        raise UsageError(
            f"dtype is '{dtype}'.", hint="Use float32, bfloat16 or float16, or remove it."
        )
    kept = _merge_layers(model, wanted)
    merged: Any = model.unload()
    for name, module in merged.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            raise UsageError(f"PEFT left an adapter at '{name}'.")

    # The configuration says what is true of the embeddings, now that copies replaced them.
    text, head = merged.config.get_text_config(), merged.get_output_embeddings()
    if getattr(text, "tie_word_embeddings", False) and head is not None:
        if head.weight.equal(merged.get_input_embeddings().weight):
            merged.tie_weights()
        else:
            text.tie_word_embeddings = merged.config.tie_word_embeddings = False

    if wanted is not None:
        merged.to(wanted)
    if any(getattr(module, "gradient_checkpointing", False) for module in merged.modules()):
        merged.gradient_checkpointing_disable()
    merged.requires_grad_(True)  # as after from_pretrained
    medians = {name: median(shares) for name, shares in kept.items() if shares}
    if not all(share >= _ENOUGH_KEPT for share in medians.values()):
        said = " and ".join(
            f"{100 * share:.3g} % of that of {name}" for name, share in medians.items()
        )
        warnings.warn(
            f"Rounding to 16 bits keeps this much of the change (median over weights): {said}. "
            "Merge with dtype='float32' to keep all of it.",
            stacklevel=2,
        )
    plain: PreTrainedModel = merged.eval()
    return plain


def _merge_layers(model: PeftModel, wanted: torch.dtype | None) -> dict[str, list[float]]:
    """Add adapters to their weights and round them and trained copies, one layer at a time.

    Returns:
        For full modules and adapters, the share of each rounded weight's change that is left: the
        projection of what is left on the change.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    kept: dict[str, list[float]] = {"full modules": [], "adapters": []}

    def convert(kind: str, parameter: torch.nn.Parameter, weight: torch.Tensor) -> None:
        exact = parameter.data
        parameter.data = exact.to(wanted or weight.dtype)
        if parameter.dtype == exact.dtype:
            return
        start = weight.to(exact.device).float()
        change = exact.float() - start
        if energy := float(change.square().sum()):
            kept[kind].append(float(((parameter.data.float() - start) * change).sum()) / energy)

    for module in list(model.modules()):
        if isinstance(module, ModulesToSaveWrapper):
            originals = dict(module.original_module.named_parameters())
            for copy in module.modules_to_save.values():
                for name, parameter in copy.named_parameters():
                    convert("full modules", parameter, originals[name].data)
        elif isinstance(module, BaseTunerLayer):
            base = module.get_base_layer()
            before = {name: item.data for name, item in base.named_parameters(recurse=False)}
            for parameter in base.parameters(recurse=False):
                if parameter.dtype in (torch.float16, torch.bfloat16):
                    parameter.data = parameter.data.float()
            module.merge(safe_merge=False)
            for name, parameter in base.named_parameters(recurse=False):
                convert("adapters", parameter, before[name])
    return kept
