"""Whether a model is the one that a plan was made for, and trainers can express the plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hlscore.artifacts.plan import Plan
from hlscore.checks.rule import Case, Finding, finding
from hlscore.exporters.exporter import find_exporter
from hlscore.exporters.limits import faults
from hlscore.records import Candidate
from hlscore.settings import ModelSettings


def check_trainers(case: Case) -> Iterator[Finding]:
    """Find what trainers cannot express."""
    places = {item.module: place for place, item in enumerate(case.plan.modules)}
    for name in case.settings.trainers:
        for fault in faults(case.plan, find_exporter(name).limits):
            first = fault.modules[0] if fault.modules else ""
            path = ("modules", places[first], "module") if first in places else ("modules",)
            yield finding(fault.code, f"{name}: {fault.reason}", path)


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
            yield finding("HLS301", f"it has no '{name}'", path)
            continue
        if item.size != planned.size:
            yield finding("HLS302", f"'{name}' is {item.size}, not {planned.size}", path)
            continue
        for verb, what in (("is stored", "storage"), ("has the weight", "parameter"),
                           ("has the form", "form")):  # fmt: skip
            there, wanted = getattr(item, what), getattr(planned, what)
            if there != wanted:
                yield finding("HLS302", f"'{name}' {verb} {there}, not {wanted}", path)
    skipped = {item.module for item in plan.skipped}
    for name in by_name:
        if name not in skipped:
            yield finding("HLS303", f"the plan does not know its '{name}'", ("skipped",))


def check_model(case: Case) -> Iterator[Finding]:
    """Compare a plan with a model, built from its configuration alone.

    This imports torch. Weights are read only where they are to be compared.
    """
    plan, settings = case.plan, case.settings
    if settings.model is None:
        return
    from hlscore.exporters.base_weights import base_weights
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
    found = find_modules(shape)
    differing = list(differences(found, plan))
    for item in differing:
        yield replace(item, message=f"Of '{settings.model}': {item.message}.")
    path = ("model", "fingerprint")
    if structure_hash(candidates_of(found)) != plan.model.fingerprint.structure:
        message = f"'{settings.model}' does not have the structure that the plan was made for."
        yield finding("HLS304", message, (*path, "structure"))
    if not settings.weights or differing:
        return
    _, weights_hash = base_weights(plan, model)
    if weights_hash() != plan.model.fingerprint.weights:
        message = f"The weights of '{settings.model}' are not those that were scored."
        yield finding("HLS305", message, (*path, "weights"))
