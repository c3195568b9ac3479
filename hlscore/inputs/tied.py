"""Weights that the configuration ties and the files do not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from hlscore.errors import ArtifactError
from hlscore.inputs.tensor_files import StoredTensor, stored_tensors


def untie_unequal(shape: PreTrainedModel, directory: Path) -> None:
    """Give tied weights of a shape parameters of their own where the files hold unequal ones.

    That is what `from_pretrained` does with such files, whatever config.json says.

    Args:
        shape: A model on the meta device; changed in place.
        directory: Folder of the checkpoint; nothing happens where it holds no safetensors.
    """
    tied = dict(getattr(shape, "all_tied_weights_keys", None) or {})
    if not tied:
        return
    try:
        tensors = stored_tensors(directory)
    except ArtifactError:  # the weights are refused when they are read, by name
        return
    names = _names_in_files(shape, tensors)
    for target, source in tied.items():
        if target not in names or source not in names:
            continue
        if _equal(tensors[names[target]], tensors[names[source]], names[target], names[source]):
            continue
        owner, _, leaf = target.rpartition(".")
        module = shape.get_submodule(owner)
        module._parameters[leaf] = nn.Parameter(torch.empty_like(shape.get_parameter(source)))
        shape.all_tied_weights_keys.pop(target)


def untied(model: PreTrainedModel) -> list[tuple[str, str]]:
    """List the weights that the configuration ties and that are not tied in a model.

    Args:
        model: A loaded model, or a shape after `untie_unequal`.
    """
    kept = getattr(model, "all_tied_weights_keys", None)
    if kept is None:
        return []
    wanted = model.get_expanded_tied_weights_keys(all_submodels=True)
    return sorted((source, target) for target, source in wanted.items() if target not in kept)


def _names_in_files(shape: PreTrainedModel, tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Name of the tensor in the files that becomes a parameter, by the parameter's name."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    table = get_model_conversion_mapping(shape)
    renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
    held = shape.state_dict()
    found = {}
    for name in tensors:
        renamed, _ = rename_source_key(name, renamings, [], shape.base_model_prefix, held)
        found[name if renamed not in held and name in held else renamed] = name
    return found


def _equal(one: StoredTensor, other: StoredTensor, name: str, other_name: str) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype == other.dtype:
        return all(left == right for left, right in zip(one.chunks(), other.chunks(), strict=True))
    return bool(torch.equal(_read(one, name).float(), _read(other, other_name).float()))


def _read(tensor: StoredTensor, name: str) -> torch.Tensor:
    with safe_open(tensor.path, framework="pt") as file:
        found: torch.Tensor = file.get_tensor(name)
    return found
