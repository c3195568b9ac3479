"""Whether a model is the one that a plan was made for."""

from __future__ import annotations

import warnings

from transformers import PreTrainedModel

from hlscore.artifacts.plan import Plan
from hlscore.checks.model_fit import differences
from hlscore.errors import ModelError
from hlscore.inputs.fingerprint import fingerprint, structure_hash
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.settings import CandidateSettings

_SHOWN = 3


def check_model(model: PreTrainedModel, plan: Plan, *, allow_other_weights: bool = False) -> None:
    """Hold a model against a plan: names and shapes must agree, weights should.

    Weights of a quantized model are rounded, so they are not compared.

    Args:
        model: The model.
        plan: The plan.
        allow_other_weights: Do not compare the weights.

    Raises:
        ArtifactError: The plan was written by an hlscore too old for this.
        ModelError: Names, shapes or kinds of the candidate modules differ.
    """
    found = find_modules(model, CandidateSettings())
    candidates = candidates_of(found)
    other = structure_hash(candidates) != plan.model.fingerprint.structure
    differing = [item.message for item in differences(found, plan)]
    if other and not differing:
        differing = ["its candidate modules are not those of the plan"]
    if differing:
        more = len(differing) - _SHOWN
        raise ModelError(
            f"The plan was made for '{plan.model.name}' ({plan.model.architecture}), and this "
            f"{type(model).__name__} differs: {'; '.join(differing[:_SHOWN])}"
            f"{f'; and {more} more' if more > 0 else ''}.",
            hint="Load the model that the plan names, or rank the modules of this one.",
        )
    if allow_other_weights or any(item.quantized for item in candidates):
        return
    if fingerprint(model).weights != plan.model.fingerprint.weights:
        warnings.warn(
            f"The weights of this model are not those of '{plan.model.name}' that were scored: "
            "the plan may not suit it. Pass allow_other_weights=True if they differ on purpose.",
            stacklevel=3,
        )
