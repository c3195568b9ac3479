"""The weights of the model that a plan is for, found in its files and held against the plan."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.artifacts.tensors import StoredTensor, stored_tensors
from hlscore.errors import ModelError
from hlscore.exporters.formats import ExportSettings
from hlscore.settings import ModelSettings

if TYPE_CHECKING:
    from hlscore.inputs.hub import ModelFiles

SAMPLES_PER_WEIGHT = 16
# Candidates that a glob left out of the ranking; they count in the fingerprint all the same.
_GLOB_REASONS = ("not matched by --include", "matched by --exclude")


def base_tensors(plan: Plan, settings: ExportSettings) -> dict[str, StoredTensor]:
    """Find the tensors of the base model, by the names that its modules have in memory.

    Checkpoints that store them under other names (older ones of mixtures of experts, for
    example) are loaded by transformers once and read from a temporary copy.

    Args:
        plan: The plan.
        settings: Where the base model is, and whether other weights are accepted.

    Returns:
        Tensors by name.

    Raises:
        ModelError: Names or shapes differ from the plan's, or the model cannot be found.
    """
    from hlscore.inputs.hub import find_model

    model = ModelSettings(
        model=settings.base(plan),
        revision=plan.model.revision if settings.model is None else None,
    )
    files = find_model(model, weights=True)
    stored = stored_tensors(files.directory)
    if not all(item.parameter in stored for item in plan.modules):
        stored = _loaded_tensors(files, model)
    _check_shapes(plan, stored, model.model)
    if not settings.allow_other_weights:
        _warn_of_other_weights(plan, stored, model.model)
    return stored


def _loaded_tensors(files: ModelFiles, model: ModelSettings) -> dict[str, StoredTensor]:
    """Let transformers rename and fuse the weights of a checkpoint."""
    from safetensors.torch import save_file

    from hlscore.inputs.model import load_weights

    loaded = load_weights(files, replace(model, device="cpu"))
    folder = Path(tempfile.mkdtemp(prefix="hlscore-weights-"))
    _remove_at_exit(folder)
    tensors: dict[str, Any] = {}
    for name, parameter in loaded.state_dict().items():
        tensors[name] = parameter.detach().cpu().contiguous().clone()
    save_file(tensors, folder / "model.safetensors")
    return stored_tensors(folder)


def _remove_at_exit(folder: Path) -> None:
    import atexit
    import shutil

    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _check_shapes(plan: Plan, stored: Mapping[str, StoredTensor], name: str) -> None:
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


def _warn_of_other_weights(plan: Plan, stored: Mapping[str, StoredTensor], name: str) -> None:
    names = [item.parameter for item in plan.modules if item.layer is not None]
    names += [item.parameter for item in plan.skipped if item.reason in _GLOB_REASONS]
    found = hashlib.sha256()
    for parameter in sorted(names):
        if parameter in stored:
            found.update(stored[parameter].sample(SAMPLES_PER_WEIGHT).tobytes())
    if f"sha256:{found.hexdigest()}" != plan.model.fingerprint.weights:
        warnings.warn(
            f"The weights of '{name}' are not those that the plan was made from: its scores may "
            "not hold. --allow-other-weights accepts them.",
            stacklevel=2,
        )
