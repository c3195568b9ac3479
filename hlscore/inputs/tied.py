"""Names of weights in files and in the model, and weights with several names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hlscore.errors import ModelError
from hlscore.inputs.tensor_files import stored_tensors

# Name in the files: name in the model, and the pattern and entry of a conversion if there is one.
Renamer = Callable[[str], tuple[str, tuple[str, Any] | None]]


def tied_names(model: PreTrainedModel) -> Mapping[str, str]:
    """The name that each tied parameter is tied to, by its own.

    Needed where tied parameters are not the same object: offloaded ones lose that.
    """
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


def untie_unequal(shape: PreTrainedModel, directory: Path) -> None:
    """Untie the weights of a shape that are unequal in the files of its checkpoint.

    That is what `from_pretrained` does with such files, regardless of config.json.

    Args:
        shape: A model on the meta device; changed in place.
    """
    tied = dict(tied_names(shape))
    if not tied:
        return
    try:
        tensors = stored_tensors(directory)
    except ModelError:  # refused when the weights are read
        return
    current = renamer(shape)
    stored = {}
    for name, tensor in tensors.items():
        target, conversion = current(name)
        if conversion is None:
            stored[target] = tensor
    for target, source in tied.items():
        both = target in stored and source in stored
        if both and not stored[target].equals(stored[source]):
            owner, _, leaf = target.rpartition(".")
            weight = nn.Parameter(torch.empty_like(shape.get_parameter(source)))
            shape.get_submodule(owner)._parameters[leaf] = weight
            shape.all_tied_weights_keys.pop(target)


def renamer(shape: PreTrainedModel) -> Renamer:
    """Transformers' own renaming of stored tensors, for one model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    table = get_model_conversion_mapping(shape)
    renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in table if isinstance(entry, WeightConverter)]
    by_pattern = {key: entry for entry in converters for key in entry.source_patterns}
    held, prefix = shape.state_dict(), shape.base_model_prefix

    def current(name: str) -> tuple[str, tuple[str, Any] | None]:
        target, pattern = rename_source_key(name, renamings, converters, prefix, held)
        if target not in held and name in held:
            target, pattern = rename_source_key(name, [], [], prefix, held)
        return target, None if pattern is None else (pattern, by_pattern[pattern])

    return current
