"""Whether a model is the one that a plan was made for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hlscore.artifacts.json_places import JsonPath
from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.checks.findings import Finding
from hlscore.checks.rules import Rule
from hlscore.records import Candidate
from hlscore.settings import CandidateSettings, CheckSettings, ModelSettings

MISSING_MODULE = Rule(
    code="HLS301",
    name="modules of the model",
    asks="Every module of the plan is one of the model's.",
    why="A trainer skips a name that it does not find, mostly without a word.",
    remedy="Name the model that the plan is for, or rank the modules of this one.",
    when="--model",
)
SHAPE = Rule(
    code="HLS302",
    name="shapes of the model",
    asks="Shape, storage, form and weight of every module are the model's.",
    why="Adapters of another shape do not load; costs were computed for other sizes.",
    remedy="Name the model that the plan is for, or rank the modules of this one.",
    when="--model",
)
UNKNOWN_MODULE = Rule(
    code="HLS303",
    name="whole model",
    asks="The plan knows every weight of the model that could be trained.",
    why="A module that the plan does not know was never scored; trainers match it by accident.",
    remedy="Rank the modules of this model.",
    when="--model",
)
STRUCTURE = Rule(
    code="HLS304",
    name="structure fingerprint",
    asks="The hash over names and shapes of the model's candidates is the plan's.",
    why="The plan was made for a model of another structure.",
    remedy="Name the model that the plan is for, or rank the modules of this one.",
    when="--model",
)
WEIGHTS = Rule(
    code="HLS305",
    name="weights fingerprint",
    asks="Sampled weights of the model hash to the plan's fingerprint.",
    why="Scores belong to the weights that were probed; after other training they may not hold.",
    remedy="Rank this checkpoint again, or remove --weights where it differs on purpose.",
    when="--weights",
)

RULES = (MISSING_MODULE, SHAPE, UNKNOWN_MODULE, STRUCTURE, WEIGHTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something in which a model and a plan differ.

    Attributes:
        rule: The rule that this breaks.
        message: What differs, as something that is said of the model, without a full stop.
        path: Where the plan speaks of it.
    """

    rule: Rule
    message: str
    path: JsonPath


def differences(found: Sequence[Candidate], plan: Plan) -> Iterator[Difference]:
    """Compare the weights of a model with those that a plan names."""
    by_name = {item.module: item for item in found}
    for place, planned in enumerate(plan.modules):
        path = ("modules", place, "module")
        item = by_name.get(planned.module)
        if item is None:
            message = f"it has no '{planned.module}'"
            yield Difference(rule=MISSING_MODULE, message=message, path=path)
            continue
        for message in _other_shape(planned, item):
            yield Difference(rule=SHAPE, message=message, path=path)
    known = {planned.module for planned in plan.modules}
    known |= {skipped.module for skipped in plan.skipped}
    for item in found:
        if item.module not in known:
            message = f"the plan does not know its '{item.module}'"
            yield Difference(rule=UNKNOWN_MODULE, message=message, path=("skipped",))


def _other_shape(planned: PlanModule, item: Candidate) -> Iterator[str]:
    asked = (planned.matrices, planned.out_features, planned.in_features)
    there = (item.matrices, item.out_features, item.in_features)
    if asked != there:
        yield f"'{planned.module}' is {_size(there)}, not {_size(asked)}"
        return
    for what, wanted, given in (
        ("is stored", planned.storage, item.storage),
        ("has the weight", planned.parameter, item.parameter),
        ("has the form", planned.form, item.form),
    ):
        if wanted != given:
            yield f"'{planned.module}' {what} {given}, not {wanted}"


def _size(shape: tuple[int, int, int]) -> str:
    matrices, out_features, in_features = shape
    size = f"{out_features} x {in_features}"
    return size if matrices == 1 else f"{matrices} x {size}"


def check_model(plan: Plan, settings: CheckSettings) -> Iterator[Finding]:
    """Hold a plan against a model, built from its configuration alone.

    This imports torch. Weights are read only where they are to be compared.
    """
    from hlscore.inputs.identity import structure_hash
    from hlscore.inputs.model import load_shape
    from hlscore.inputs.modules import candidates_of, find_modules

    name = settings.model or plan.model.name
    shape, _ = load_shape(model_settings(plan, settings))
    found = find_modules(shape, CandidateSettings())
    differing = list(differences(found, plan))
    for item in differing:
        yield item.rule.finding(f"Of '{name}': {item.message}.", item.path)
    other = structure_hash(candidates_of(found)) != plan.model.fingerprint.structure
    if other:
        message = f"The structure of '{name}' is not the one that the plan was made for."
        yield STRUCTURE.finding(message, ("model", "fingerprint", "structure"))
    if settings.weights and not differing:
        yield from _weights(plan, name, settings)


def model_settings(plan: Plan, settings: CheckSettings) -> ModelSettings:
    """Which model to load: the plan's own at the plan's revision, unless another is asked for."""
    name = settings.model or plan.model.name
    own = plan.model.revision if name == plan.model.name else None
    return ModelSettings(
        model=name,
        revision=settings.revision or own,
        trust_remote_code=settings.trust_remote_code,
        architecture=plan.model.architecture,
        ignore_adapter=True,  # the plan names modules of the base model
    )


def _weights(plan: Plan, name: str, settings: CheckSettings) -> Iterator[Finding]:
    from hlscore.exporters.base_weights import has_the_weights

    if not has_the_weights(plan, model_settings(plan, settings)):
        message = f"The weights of '{name}' are not those that were scored."
        yield WEIGHTS.finding(message, ("model", "fingerprint", "weights"))
