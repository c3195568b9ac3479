"""Whether a model is the one that a plan was made for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from transformers import PreTrainedModel

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_upgrade import refuse_upgraded
from hlscore.errors import ModelError
from hlscore.inputs.fingerprint import fingerprint, structure_hash
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.records import Candidate
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
    refuse_upgraded(plan, "apply")
    found = find_modules(model, CandidateSettings())
    candidates = candidates_of(found)
    other = structure_hash(candidates) != plan.model.fingerprint.structure
    differences = list(_differences(found, plan))
    if other and not differences:
        differences = ["its candidate modules are not those of the plan"]
    if differences:
        more = len(differences) - _SHOWN
        raise ModelError(
            f"The plan was made for '{plan.model.name}' ({plan.model.architecture}), and this "
            f"{type(model).__name__} differs: {'; '.join(differences[:_SHOWN])}"
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


def _differences(found: tuple[Candidate, ...], plan: Plan) -> Iterator[str]:
    by_name = {item.module: item for item in found}
    for planned in plan.modules:
        item = by_name.get(planned.module)
        if item is None:
            yield f"it has no '{planned.module}'"
            continue
        asked = (planned.matrices, planned.out_features, planned.in_features)
        there = (item.matrices, item.out_features, item.in_features)
        if asked != there:
            yield f"'{planned.module}' is {_size(there)}, not {_size(asked)}"
        for what, wanted, given in (
            ("is stored", planned.storage, item.storage),
            ("has the weight", planned.parameter, item.parameter),
            ("has the form", planned.form, item.form),
        ):
            if asked == there and wanted != given:
                yield f"'{planned.module}' {what} {given}, not {wanted}"
    known = {planned.module for planned in plan.modules}
    known |= {skipped.module for skipped in plan.skipped}
    for item in found:
        if item.module not in known:
            yield f"the plan does not know its '{item.module}'"


def _size(shape: tuple[int, int, int]) -> str:
    matrices, out_features, in_features = shape
    size = f"{out_features} x {in_features}"
    return size if matrices == 1 else f"{matrices} x {size}"
