"""The weights of the model that a plan is for, found in its files and compared with the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from hlscore.artifacts.plan import Plan
from hlscore.errors import ModelError
from hlscore.inputs.hub import find_model
from hlscore.inputs.tensor_files import NewTensor, StoredTensor, sample_hash, stored_tensors
from hlscore.settings import ModelSettings
from hlscore.wording import first_of

BaseTensor: TypeAlias = StoredTensor | NewTensor

# Candidates that a glob left out of the ranking; they count in the fingerprint all the same.
_BY_GLOB = ("not_included", "excluded")


def base_weights(
    plan: Plan, model: ModelSettings
) -> tuple[Mapping[str, BaseTensor], Callable[[], str]]:
    """The tensors of a model that has the names and shapes of a plan.

    Returns:
        Tensors by the names that modules have in memory, and a function that hashes samples of
        them as the plan's fingerprint of the weights does.
    """
    stored = stored_tensors(find_model(model, weights=True).directory)
    tensors: Mapping[str, BaseTensor] = stored
    if all(item.parameter in stored for item in plan.modules):
        counted = {item.parameter for item in plan.modules if item.layer is not None}
        counted |= {item.parameter for item in plan.skipped if item.left_out in _BY_GLOB}

        def weights_hash() -> str:
            names = stored.keys() & counted
            return sample_hash({name: stored[name].sample().tobytes() for name in names})

    else:  # stored under other names or in pieces, as older mixtures of experts are
        from hlscore.inputs.stored_weights import StoredWeights

        weights = StoredWeights(replace(model, device="cpu"))
        tensors = weights.named_tensors()

        def weights_hash() -> str:
            return weights.read((), lambda *_: None)

    wrong = []
    for item in plan.modules:
        shape: tuple[int, ...] = (item.out_features, item.in_features)
        if item.storage == "in_out":
            shape = shape[::-1]
        if item.form == "experts":
            shape = (item.matrices, *shape)
        found = tensors.get(item.parameter)
        if found is None:
            wrong.append(f"it has no '{item.parameter}'")
        elif found.shape != shape:
            wrong.append(f"'{item.parameter}' is {[*found.shape]}, the plan says {[*shape]}")
    if wrong:
        raise ModelError(
            f"'{model.model}' is not the model of this plan ({plan.model.name}): "
            f"{first_of(wrong, 3, '; ')}.",
            hint="Name the right one with --model, or plan for this one.",
        )
    return tensors, weights_hash
