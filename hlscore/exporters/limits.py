"""What a trainer cannot express, and the plans that this refuses."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.errors import UsageError
from hlscore.exporters.adapter_config import (
    TIEABLE,
    full_name,
    is_read_past,
    lora_name,
    needs_parameter_name,
    never_packed,
    ties_weights,
)
from hlscore.planning.revision import Change, common_rank, default_rank, lora_instead
from hlscore.reasons import tied_modules
from hlscore.records import Form

SHOWN = 3
SEED_ADAPTER = (
    "`hlscore export --to seed-adapter` writes an untrained adapter that carries the whole plan "
    "and that this trainer can start from."
)
_UNPACKED = "Plan again with --base 16."

# Parameters beside the experts' weights that are trained with them, as biases are everywhere.
_BESIDE = ("not_linear", "custom")

# After every character of a name.
_LAST = "\U0010ffff"

FaultKind = Literal["mode", "tied", "name", "experts", "read_past", "ranks", "whole"]


class ExportError(UsageError):
    """A trainer cannot express the plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a trainer can express. Every trainer that runs PEFT shares PEFT's own limits.

    Attributes:
        trainer: What to call it.
        full: Whether it can train modules in full beside LoRA.
        lora: Whether it can train LoRA.
        ranks: Whether modules can have ranks of their own.
        parameters: Whether LoRA can go on a weight that is no linear layer: routers, experts, and
            the linear layers that PEFT reaches only by parameter name.
        forms: What LoRA can sit on, apart from that.
        head: Whether LoRA can go on the output head.
        only_full: Whether a plan without LoRA can be run.
        only_lora: Whether a plan without full modules can be run.
        peft: Whether modules are found by PEFT, with its traps.
        bits: Bits of the base weights that it can train on.
        packs: Bits at which it packs every linear layer, also those that the plan trains in full.
        unties: Whether it unties a tied embedding that is trained in full.
        instead: Another way to run the plan that this trainer has.
    """

    trainer: str
    full: bool = True
    lora: bool = True
    ranks: bool = True
    parameters: bool = True
    forms: tuple[Form, ...] = get_args(Form)
    head: bool = True
    only_full: bool = True
    only_lora: bool = True
    peft: bool = True
    bits: tuple[int, ...] = (16, 8, 4)
    packs: tuple[int, ...] = ()
    unties: bool = False
    instead: str = ""


PEFT_LIMITS = Limits(trainer="PEFT")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in a plan that a trainer cannot do.

    Attributes:
        kind: Which limit is broken: how a module is trained, a tied weight, a name that matches
            others too, experts that can only be trained together, a weight that is read without
            its adapter, the number of ranks, or the plan as a whole.
        modules: Full names of the modules that it is about; empty for the plan as a whole.
        reason: What cannot be done and why, in one sentence.
        changes: What is nearest to it and can be done; empty where nothing is.
        way_out: What to do where no change of the plan helps.
    """

    kind: FaultKind
    modules: tuple[str, ...]
    reason: str
    changes: tuple[Change, ...] = ()
    way_out: str = ""


def faults(plan: Plan, limits: Limits) -> list[Fault]:
    """Everything in a plan that a trainer cannot do, the faults of single modules first."""
    case = _Case(plan, limits, _Names(plan), tied_modules(plan.skipped))
    rules = (_modes, *(_PEFT_RULES if limits.peft else ()), _ranks, _base_weights, _whole)
    return [fault for rule in rules for fault in rule(case)]


def check_limits(plan: Plan, limits: Limits) -> None:
    """Refuse a plan that a trainer cannot run."""
    found = faults(plan, limits)
    if found:
        raise refusal(found, limits)


def refusal(found: list[Fault], limits: Limits) -> ExportError:
    """The error for a plan that a trainer cannot run, with the first reasons and the way out."""
    shown = " ".join(fault.reason for fault in found[:SHOWN])
    more = f" And {len(found) - SHOWN} more." if len(found) > SHOWN else ""
    ways = [limits.instead, *(fault.way_out for fault in found)]
    if lock := next((change.lock for fault in found for change in fault.changes), ""):
        ways.append(
            "`hlscore export --nearest` writes the nearest plan that it can run; or plan again, "
            f"with `hlscore plan ... --lock '{lock}'` and the like."
        )
    elif not any(fault.way_out for fault in found):
        ways.append("Plan again with another budget or other locks.")
    hint = " ".join(dict.fromkeys(filter(None, ways)))
    return ExportError(f"{limits.trainer} cannot run this plan. {shown}{more}", hint=hint)


class _Names:
    """Every name of a model that its plan knows: modules, parameters, and what holds them."""

    def __init__(self, plan: Plan) -> None:
        listed = [(item.module, item.parameter) for item in plan.modules]
        listed += [(item.module, item.parameter) for item in plan.skipped]
        self._modules = sorted(module for module, _ in listed)
        every = set()
        for name in {name for pair in listed for name in pair}:
            parts = name.split(".")
            every |= {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
        self._reversed = sorted(name[::-1] for name in every)

    def longer(self, name: str, *, whole_parts: bool) -> str:
        """The first longer name that ends in a name, with a dot before it if `whole_parts`."""
        start = name[::-1] + ("." if whole_parts else "")
        first = bisect_left(self._reversed, start)
        for found in self._reversed[first : first + 2]:
            if found.startswith(start) and len(found) > len(name):
                return found[::-1]
        return ""

    def inside(self, item: PlanModule) -> str:
        """The first other weight that would be trained in full with a module, as it is in it."""
        start = f"{full_name(item)}."
        first = bisect_left(self._modules, start)
        last = bisect_left(self._modules, start + _LAST)
        for name in self._modules[first:last]:
            # The tensors of fused experts lie side by side in one module, with their biases.
            if item.form != "experts" or f"{name.rpartition('.')[0]}." != start:
                return name
        return ""


@dataclass(frozen=True, slots=True)
class _Case:
    """A plan checked against the limits of a trainer."""

    plan: Plan
    limits: Limits
    names: _Names
    tied: frozenset[str]

    def takes_lora(self, item: PlanModule) -> bool:
        """Whether the trainer can put LoRA on a module."""
        limits = self.limits
        reached = limits.parameters or not needs_parameter_name(self.plan, item)
        able = item.form in limits.forms and (limits.head or not _is_head(item))
        trapped = limits.peft and (
            item.module in self.tied
            or is_read_past(self.plan, item)
            or self.names.longer(lora_name(self.plan, item), whole_parts=True) != ""
        )
        return limits.lora and reached and able and not trapped

    def lower(self, item: PlanModule, rank: int | None = None) -> Change:
        """The nearest thing below full fine-tuning of a module."""
        if not self.takes_lora(item):
            return Change(module=item.module, mode="frozen")
        if not self.limits.ranks:
            rank = default_rank(self.plan)
        return lora_instead(self.plan, item, rank or self.plan.lora.rank, lower=self.limits.ranks)


def _frozen(kind: FaultKind, item: PlanModule, reason: str) -> Fault:
    return Fault(kind, (item.module,), reason, (Change(module=item.module, mode="frozen"),))


def _is_head(item: PlanModule) -> bool:
    return item.layer is None and item.form != "embedding"


def _modes(case: _Case) -> Iterator[Fault]:
    limits, trainer = case.limits, case.limits.trainer
    for item in case.plan.full:
        if not limits.full:
            reason = f"{trainer} cannot train '{item.module}' in full beside LoRA."
            yield Fault("mode", (item.module,), reason, (case.lower(item),))
    for item in case.plan.lora_modules:
        place = f"'{item.module}'"
        if not limits.lora:
            why = place
        elif not limits.parameters and needs_parameter_name(case.plan, item):
            why = f"{place}: only the name of its parameter reaches it"
        elif item.form not in limits.forms:
            why = f"{place}, which is not a linear layer"
        elif not limits.head and _is_head(item):
            why = f"the output head {place}"
        else:
            continue
        yield _frozen("mode", item, f"{trainer} cannot put LoRA on {why}.")


def _tied_weights(case: _Case) -> Iterator[Fault]:
    for item in case.plan.modules:
        if item.module not in case.tied or item.mode == "frozen":
            continue
        others = [other.module for other in case.plan.skipped if other.tied_to == item.module]
        leaves = {name.rpartition(".")[2] for name in (item.module, *others)}
        if item.mode == "lora":
            reason = f"LoRA on '{item.module}' would merge wrongly: its weight is tied."
        elif item.form != "embedding" or not leaves <= {*TIEABLE}:
            reason = (
                f"'{item.module}' cannot be trained in full: its weight is tied, and PEFT keeps "
                "only embed_tokens and lm_head tied."
            )
        else:
            continue
        yield _frozen("tied", item, reason)


def _read_past(case: _Case) -> Iterator[Fault]:
    for item in case.plan.lora_modules:
        if is_read_past(case.plan, item):
            reason = (
                f"LoRA on '{item.module}' would have no effect: {case.plan.model.model_type} "
                "models or their kernels read the weight without the adapter."
            )
            yield _frozen("read_past", item, reason)


def _mixed_experts(case: _Case) -> Iterator[Fault]:
    """PEFT copies the module that holds all experts, so all tensors are full or none is."""
    for holder in sorted({full_name(item) for item in case.plan.full if item.form == "experts"}):
        inside = [
            item for item in case.plan.modules
            if item.form == "experts" and full_name(item) == holder
        ]  # fmt: skip
        left_out = [
            item.module for item in case.plan.skipped
            if item.parameter.rpartition(".")[0] == holder and item.left_out not in _BESIDE
        ]  # fmt: skip
        full = [item for item in inside if item.mode == "full"]
        others = [*(item.module for item in inside if item.mode != "full"), *left_out]
        if others:
            rank = next((item.rank for item in inside if item.mode == "lora"), None)
            yield Fault(
                "experts",
                tuple(item.module for item in full),
                f"'{full[0].module}' cannot be trained in full without '{others[0]}': PEFT "
                f"trains all weights of '{holder}' in full, or none.",
                tuple(case.lower(item, rank) for item in full),
            )


def _clashing_names(case: _Case) -> Iterator[Fault]:
    for item in case.plan.modules:
        if item.mode == "frozen":
            continue
        if item.mode == "lora":
            other = case.names.longer(lora_name(case.plan, item), whole_parts=True)
        else:
            other = case.names.longer(full_name(item), whole_parts=False)
        if other:
            reason = (
                f"'{item.module}' cannot be trained alone: PEFT matches the ends of names, and "
                f"'{other}' ends like it."
            )
            yield _frozen("name", item, reason)
    for item in case.plan.full:
        if inner := case.names.inside(item):
            reason = (
                f"'{item.module}' cannot be trained in full alone: '{inner}' lies inside "
                f"'{full_name(item)}' and would be trained with it."
            )
            yield Fault("name", (item.module,), reason, (case.lower(item),))


def _wrapped_owners(case: _Case) -> Iterator[Fault]:
    """LoRA on a parameter wraps the module that owns it.

    Names inside it change, and the wrapper takes its input by position only.
    """
    owners = sorted((item.parameter.rpartition(".")[0], item.module) for item in case.plan.modules)
    for item in case.plan.lora_modules:
        owner = item.parameter.rpartition(".")[0]
        first = bisect_left(owners, (f"{owner}.", ""))
        inside, name = owners[first] if first < len(owners) else ("", "")
        if inside.startswith(f"{owner}.") and needs_parameter_name(case.plan, item):
            reason = (
                f"LoRA on '{item.module}' cannot be trained: PEFT would wrap '{owner}', which "
                f"holds '{name}' too."
            )
            yield _frozen("name", item, reason)


def _ranks(case: _Case) -> Iterator[Fault]:
    if not case.limits.ranks and len({item.rank for item in case.plan.lora_modules}) > 1:
        rank = common_rank(case.plan)
        items = [item for item in case.plan.lora_modules if item.rank != rank]
        yield Fault(
            "ranks",
            tuple(item.module for item in items),
            f"{case.limits.trainer} has one LoRA rank for all modules.",
            tuple(Change(module=item.module, mode="lora", rank=rank) for item in items),
        )


def _base_weights(case: _Case) -> Iterator[Fault]:
    limits, bits = case.limits, case.plan.memory.base_bits
    if bits not in limits.bits:
        reason = f"{limits.trainer} trains on weights of 16 bits only."
        yield Fault("whole", (), reason, way_out=_UNPACKED)
    elif bits in limits.packs:
        for module, what in never_packed(case.plan):
            reason = (
                f"{limits.trainer} packs every linear layer into {bits} bits, also '{module}', "
                f"which is to be {what}."
            )
            yield Fault("mode", (module,), reason, way_out=_UNPACKED)
    if limits.unties and ties_weights(case.plan):
        reason = f"{limits.trainer} would untie the embedding that the plan trains in full."
        yield Fault("tied", (), reason, way_out=SEED_ADAPTER)


def _whole(case: _Case) -> Iterator[Fault]:
    plan, limits = case.plan, case.limits
    changes: tuple[Change, ...] = ()
    if not plan.full and not plan.lora_modules:
        if not limits.peft and limits.full and limits.lora:
            return
        reason = "The plan trains nothing."
    elif not plan.lora_modules and not limits.only_full:
        reason = f"{limits.trainer} cannot run a plan without LoRA."
        # The module of the lowest score that can have LoRA; one that was asked for last.
        order = sorted(plan.full, key=lambda item: (item.locked, -item.position))
        lower = (case.lower(item) for item in order)
        changes = tuple(change for change in lower if change.mode == "lora")[:1]
    elif not plan.full and not limits.only_lora:
        reason = f"{limits.trainer} cannot run a plan without modules trained in full."
    else:
        return
    yield Fault("whole", (), reason, changes)


# Rules for trainers in which PEFT finds the modules.
_PEFT_RULES: tuple[Callable[[_Case], Iterator[Fault]], ...] = (
    _tied_weights,
    _read_past,
    _mixed_experts,
    _clashing_names,
    _wrapped_owners,
)
