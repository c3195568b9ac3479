"""Whether a model is the one that a plan was made for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hlscore.artifacts.plan import Plan
from hlscore.checks.rule import Case, Finding, Rule
from hlscore.records import Candidate
from hlscore.settings import CandidateSettings, ModelSettings

MISSING_MODULE = Rule(
    code="HLS301",
    name="modules of the model",
    asks="Every module of the plan is one of the model's.",
    why="A trainer skips a name that it does not find, mostly without saying so.",
    remedy="Name the model that the plan is for, or rank the modules of this one.",
    when=("model",),
)
SHAPE = Rule(
    code="HLS302",
    name="shapes of the model",
    asks="Shape, storage, form and weight of every module are the model's.",
    why="Adapters of another shape do not load; costs were computed for other sizes.",
    remedy="Name the model that the plan is for, or rank the modules of this one.",
    when=("model",),
)
UNKNOWN_MODULE = Rule(
    code="HLS303",
    name="whole model",
    asks="The plan knows every weight of the model that could be trained.",
    why="A module that the plan does not know was never scored; trainers match it by accident.",
    remedy="Rank the modules of this model.",
    when=("model",),
)
STRUCTURE = Rule(
    code="HLS304",
    name="structure fingerprint",
    asks="The hash over names and shapes of the model's candidates is the plan's.",
    why="The plan was made for a model of another structure.",
    remedy="Name the model that the plan is for, or rank the modules of this one.",
    when=("model",),
)
WEIGHTS = Rule(
    code="HLS305",
    name="weights fingerprint",
    asks="Sampled weights of the model hash to the plan's fingerprint.",
    why="Scores belong to the weights that were probed; after other training they may not hold.",
    remedy="Rank this checkpoint again, or remove --weights where it differs on purpose.",
    when=("weights",),
)


def differences(found: Sequence[Candidate], plan: Plan) -> Iterator[Finding]:
    """What differs between the weights of a model and those that a plan names.

    Yields:
        Findings whose messages are said of the model, without a full stop.
    """
    by_name = {item.module: item for item in found}
    for place, planned in enumerate(plan.modules):
        path, name = ("modules", place, "module"), planned.module
        item = by_name.pop(name, None)
        if item is None:
            yield MISSING_MODULE.finding(f"it has no '{name}'", path)
            continue
        there, wanted = (
            f"{side.matrices} x {side.out_features} x {side.in_features}".removeprefix("1 x ")
            for side in (item, planned)
        )
        if there != wanted:
            yield SHAPE.finding(f"'{name}' is {there}, not {wanted}", path)
            continue
        for verb, what in (("is stored", "storage"), ("has the weight", "parameter"),
                           ("has the form", "form")):  # fmt: skip
            there, wanted = getattr(item, what), getattr(planned, what)
            if there != wanted:
                yield SHAPE.finding(f"'{name}' {verb} {there}, not {wanted}", path)
    skipped = {item.module for item in plan.skipped}
    for name in by_name:
        if name not in skipped:
            yield UNKNOWN_MODULE.finding(f"the plan does not know its '{name}'", ("skipped",))


def check(case: Case) -> Iterator[Finding]:
    """Compare a plan with a model, built from its configuration alone.

    This imports torch. Weights are read only where they are to be compared.
    """
    plan, settings = case.plan, case.settings
    if settings.model is None:
        return
    from hlscore.exporters.base_weights import has_the_weights
    from hlscore.inputs.identity import structure_hash
    from hlscore.inputs.model import load_shape
    from hlscore.inputs.modules import candidates_of, find_modules

    own = plan.model.revision if settings.model == plan.model.name else None
    model = ModelSettings(
        model=settings.model,
        revision=settings.revision or own,
        trust_remote_code=settings.trust_remote_code,
        architecture=plan.model.architecture,
        ignore_adapter=True,  # the plan names modules of the base model
    )
    shape, _ = load_shape(model)
    found = find_modules(shape, CandidateSettings())
    differing = list(differences(found, plan))
    for item in differing:
        yield replace(item, message=f"Of '{settings.model}': {item.message}.")
    path = ("model", "fingerprint")
    if structure_hash(candidates_of(found)) != plan.model.fingerprint.structure:
        message = f"'{settings.model}' does not have the structure that the plan was made for."
        yield STRUCTURE.finding(message, (*path, "structure"))
    if settings.weights and not differing and not has_the_weights(plan, model):
        message = f"The weights of '{settings.model}' are not those that were scored."
        yield WEIGHTS.finding(message, (*path, "weights"))
