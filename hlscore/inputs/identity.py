"""Which model it is: what the artifacts say about it."""

from __future__ import annotations

from transformers import PreTrainedModel

from hlscore.inputs.dimensions import dimensions
from hlscore.inputs.packed import count_params
from hlscore.records import Fingerprint, ModelIdentity


def identity_of(
    model: PreTrainedModel, name: str, revision: str | None, found: Fingerprint
) -> ModelIdentity:
    """Describe a model whose fingerprint is known, also without weights.

    Args:
        model: The model; only names, types and shapes are read.
    """
    return ModelIdentity(
        model=name,
        revision=revision,
        architecture=type(model).__name__,
        model_type=str(model.config.model_type),
        n_params=count_params(model),
        dimensions=dimensions(model),
        fingerprint=found,
    )
