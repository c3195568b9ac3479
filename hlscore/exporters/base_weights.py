"""The weights of the model that a plan is for, found in its files and held against the plan."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.errors import ModelError, first_line
from hlscore.exporters.exporter import ExportSettings
from hlscore.exporters.peft import full_name
from hlscore.inputs.tensor_files import HeldTensor, StoredTensor, stored_tensors
from hlscore.settings import ModelSettings

if TYPE_CHECKING:
    import torch

    from hlscore.inputs.hub import ModelFiles

BaseTensor: TypeAlias = StoredTensor | HeldTensor

SAMPLES_PER_WEIGHT = 16
# Candidates that a glob left out of the ranking; they count in the fingerprint all the same.
_BY_GLOB = ("not_included", "excluded")
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


def base_tensors(plan: Plan, settings: ExportSettings) -> Mapping[str, BaseTensor]:
    """The tensors of the base model, by the names that its modules have in memory.

    Checkpoints that store them under other names (older ones of mixtures of experts, for
    example) are loaded by transformers once; of these, the tensors of modules trained in full
    are held in memory, and a sample of the others.
    """
    model = ModelSettings(
        model=settings.base(plan),
        revision=plan.model.revision if settings.model is None else None,
        architecture=plan.model.architecture,
        ignore_adapter=True,  # the plan names modules of the base model
    )
    stored = _checked_tensors(plan, model)
    if not settings.allow_other_weights and not _are_the_weights(plan, stored):
        warnings.warn(
            f"The weights of '{model.model}' are not those that the plan was made from: its "
            "scores may not hold. --allow-other-weights accepts them.",
            stacklevel=2,
        )
    return stored


def has_the_weights(plan: Plan, model: ModelSettings) -> bool:
    """Whether the sampled weights of a model hash to the plan's fingerprint."""
    return _are_the_weights(plan, _checked_tensors(plan, model))


def _checked_tensors(plan: Plan, model: ModelSettings) -> Mapping[str, BaseTensor]:
    from hlscore.inputs.hub import find_model

    files = find_model(model, weights=True)
    stored: Mapping[str, BaseTensor] = stored_tensors(files.directory)
    if not all(item.parameter in stored for item in plan.modules):
        stored = _loaded_tensors(plan, files, model)
    _check_shapes(plan, stored, model.model)
    return stored


def _loaded_tensors(plan: Plan, files: ModelFiles, model: ModelSettings) -> dict[str, HeldTensor]:
    """Let transformers rename and fuse the weights of a checkpoint; keep what is needed."""
    from safetensors import SafetensorError

    from hlscore.inputs.model import load_weights

    try:
        loaded = load_weights(files, replace(model, device="cpu"))
    except SafetensorError as error:
        raise ModelError(f"'{model.model}' cannot be loaded: {first_line(error)}") from error
    copied = tuple(f"{full_name(item)}." for item in plan.full)
    sampled = {item.parameter for item in plan.modules}
    sampled |= {item.parameter for item in plan.skipped}
    return {
        name: _held(name, tensor, copied=name.startswith(copied))
        for name, tensor in loaded.state_dict().items()
        if name.startswith(copied) or name in sampled
    }


def _held(name: str, tensor: torch.Tensor, *, copied: bool) -> HeldTensor:
    import torch

    from hlscore.inputs.fingerprint import sampled_weights

    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ModelError(f"'{name}' is stored as {dtype}, which cannot be copied.")
    flat = tensor.detach().contiguous().reshape(-1)
    drawn = sampled_weights(flat) if flat.is_floating_point() else flat[:0].to(torch.bfloat16)
    return HeldTensor(
        dtype=_DTYPES[dtype],
        shape=tuple(tensor.shape),
        # A view: the rest of the model is let go.
        data=flat.view(torch.uint8).numpy() if copied else None,
        drawn=drawn.view(torch.int16).numpy(),
    )


def _check_shapes(plan: Plan, stored: Mapping[str, BaseTensor], name: str) -> None:
    wrong = []
    for item in plan.modules:
        found = stored.get(item.parameter)
        if found is None:
            wrong.append(f"it has no '{item.parameter}'")
        elif found.shape != _shape(item):
            wrong.append(
                f"'{item.parameter}' is {list(found.shape)}, the plan says {list(_shape(item))}"
            )
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelError(
            f"'{name}' is not the model of this plan ({plan.model.name}): "
            f"{'; '.join(wrong[:3])}{more}.",
            hint="Name the right one with --model, or plan for this one.",
        )


def _shape(item: PlanModule) -> tuple[int, ...]:
    sizes = (item.out_features, item.in_features)
    if item.storage == "in_out":
        sizes = sizes[::-1]
    return (item.matrices, *sizes) if item.form == "experts" else sizes


def _are_the_weights(plan: Plan, stored: Mapping[str, BaseTensor]) -> bool:
    names = [item.parameter for item in plan.modules if item.layer is not None]
    names += [item.parameter for item in plan.skipped if item.left_out in _BY_GLOB]
    found = hashlib.sha256()
    for parameter in sorted(names):
        if parameter in stored:
            found.update(stored[parameter].sample(SAMPLES_PER_WEIGHT).tobytes())
    return f"sha256:{found.hexdigest()}" == plan.model.fingerprint.weights
