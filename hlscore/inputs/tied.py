"""Names of weights in files and in the model, and those that the configuration alone ties."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from hlscore.errors import ArtifactError
from hlscore.inputs.tensor_files import StoredTensor, stored_tensors

# Name in the files: name in the model, and the pattern and entry of a conversion if there is one.
Renamer = Callable[[str], tuple[str, tuple[str, Any] | None]]


def untie_unequal(shape: PreTrainedModel, directory: Path) -> None:
    """Give tied weights of a shape parameters of their own where the files hold unequal ones.

    That is what `from_pretrained` does with such files, regardless of config.json.

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
    current = renamer(shape)
    found = {name: current(name) for name in tensors}
    names = {target: name for name, (target, conversion) in found.items() if conversion is None}
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
    """List the weights that the configuration ties and that are not tied in a model."""
    kept = getattr(model, "all_tied_weights_keys", None)
    if kept is None:
        return []
    wanted = model.get_expanded_tied_weights_keys(all_submodels=True)
    return sorted((source, target) for target, source in wanted.items() if target not in kept)


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
