"""What a trainer cannot express, and the plans that this refuses."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.errors import UsageError
from hlscore.exporters.moe_names import needs_parameter_name
from hlscore.exporters.name_clashes import Names
from hlscore.exporters.peft_names import TIEABLE, full_name, is_read_past, lora_name
from hlscore.exporters.revision import Change, common_rank, default_rank, lora_instead
from hlscore.reasons import CUSTOM, NO_MAP, tied_modules, tied_to
from hlscore.records import Form

SHOWN = 3

# Parameters beside the experts' weights that are trained with them, as biases are everywhere.
_BESIDE = (NO_MAP, CUSTOM)


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
        instead: Another way to run the plan that this trainer has, for its refusals.
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
    instead: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something in a plan that a trainer cannot do.

    Attributes:
        kind: Which limit is broken: how a module is trained, a tied weight, a name that matches
            others too, experts that can only be trained together, a weight that is read past its
            adapter, the number of ranks, or the plan as a whole.
        modules: Full names of the modules that it is about; empty for the plan as a whole.
        reason: What cannot be done and why, in one sentence.
        changes: What is nearest to it and can be done; empty where nothing is.
    """

    kind: FaultKind
    modules: tuple[str, ...]
    reason: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class _Case:
    """A plan held against the limits of a trainer."""

    plan: Plan
    limits: Limits
    names: Names
    tied: frozenset[str]

    def has_lora_by(self, item: PlanModule) -> bool:
        """Whether the trainer can put LoRA on a module."""
        limits = self.limits
        by_parameter = needs_parameter_name(self.plan, item)
        peft = not limits.peft or not (
            item.module in self.tied
            or is_read_past(self.plan, item)
            or self.names.longer(lora_name(self.plan, item), whole_parts=True)
        )
        reached = limits.parameters or not by_parameter
        able = item.form in limits.forms and (limits.head or not _is_head(item))
        return limits.lora and peft and reached and able

    def lower(self, item: PlanModule, rank: int | None = None) -> Change:
        """The nearest thing below full fine-tuning of a module."""
        if not self.has_lora_by(item):
            return Change(module=item.module, mode="frozen")
        if not self.limits.ranks:
            rank = default_rank(self.plan)
        return lora_instead(self.plan, item, rank or self.plan.lora.rank, lower=self.limits.ranks)


def faults(plan: Plan, limits: Limits) -> list[Fault]:
    """Find everything in a plan that a trainer cannot do.

    Args:
        plan: The plan.
        limits: What the trainer can do.

    Returns:
        The faults, those of single modules first; empty for a plan that it can run.
    """
    case = _Case(plan, limits, Names(plan), tied_modules(plan.skipped))
    return [fault for rule in _RULES for fault in rule(case)]


def check_limits(plan: Plan, limits: Limits) -> None:
    """Refuse a plan that a trainer cannot run.

    Args:
        plan: The plan.
        limits: What the trainer can do.

    Raises:
        ExportError: The trainer cannot run it.
    """
    found = faults(plan, limits)
    if found:
        raise refusal(found, limits)


def refusal(found: list[Fault], limits: Limits) -> ExportError:
    """The error for a plan that a trainer cannot run.

    Args:
        found: What it cannot do.
        limits: What it can.

    Returns:
        The error, with the first reasons and the way out.
    """
    shown = " ".join(fault.reason for fault in found[:SHOWN])
    more = f" And {len(found) - SHOWN} more." if len(found) > SHOWN else ""
    lock = next((change.lock for fault in found for change in fault.changes), "")
    hint = (
        "`hlscore export --nearest` writes the nearest plan that it can run; or plan again, with "
        f"`hlscore plan ... --lock '{lock}'` and the like."
        if lock
        else "Plan again with another budget or other locks."
    )
    hint = " ".join(part for part in (limits.instead, hint) if part)
    return ExportError(f"{limits.trainer} cannot run this plan. {shown}{more}", hint=hint)


def _frozen(kind: FaultKind, item: PlanModule, reason: str) -> Fault:
    change = Change(module=item.module, mode="frozen")
    return Fault(kind=kind, modules=(item.module,), reason=reason, changes=(change,))


def _tied_weights(case: _Case) -> Iterator[Fault]:
    if not case.limits.peft:
        return
    for item in case.plan.modules:
        if item.module not in case.tied or item.mode == "frozen":
            continue
        if item.mode == "lora":
            yield _frozen(
                "tied", item, f"LoRA on '{item.module}' would merge wrongly: its weight is tied."
            )
        elif not _can_be_tied(case.plan, item):
            yield _frozen(
                "tied",
                item,
                f"'{item.module}' cannot be trained in full: its weight is tied, and PEFT keeps "
                "only embed_tokens and lm_head tied.",
            )


def _can_be_tied(plan: Plan, item: PlanModule) -> bool:
    others = [other.module for other in plan.skipped if other.reason == tied_to(item.module)]
    leaves = [name.rpartition(".")[2] for name in (item.module, *others)]
    return item.form == "embedding" and all(leaf in TIEABLE for leaf in leaves)


def _clashing_names(case: _Case) -> Iterator[Fault]:
    if not case.limits.peft:
        return
    for item in case.plan.modules:
        if item.mode == "lora":
            other = case.names.longer(lora_name(case.plan, item), whole_parts=True)
        else:
            other = case.names.longer(full_name(item), whole_parts=False)
        if item.mode != "frozen" and other:
            yield _frozen(
                "name",
                item,
                f"'{item.module}' cannot be trained alone: PEFT matches the ends of names, and "
                f"'{other}' ends like it.",
            )
    for item in case.plan.full:
        inner = case.names.inside(item)
        if inner:
            yield Fault(
                kind="name",
                modules=(item.module,),
                reason=f"'{item.module}' cannot be trained in full alone: '{inner}' lies inside "
                f"'{full_name(item)}' and would be trained with it.",
                changes=(case.lower(item),),
            )


def _wrapped_owners(case: _Case) -> Iterator[Fault]:
    """LoRA on a parameter wraps the module that owns it.

    Names inside it change, and the wrapper takes its input by position only.
    """
    if not case.limits.peft:
        return
    owners = sorted((item.parameter.rpartition(".")[0], item.module) for item in case.plan.modules)
    for item in case.plan.lora_modules:
        owner = item.parameter.rpartition(".")[0]
        first = bisect_left(owners, (f"{owner}.", ""))
        inside, name = owners[first] if first < len(owners) else ("", "")
        if inside.startswith(f"{owner}.") and needs_parameter_name(case.plan, item):
            yield _frozen(
                "name",
                item,
                f"LoRA on '{item.module}' cannot be trained: PEFT would wrap '{owner}', which "
                f"holds '{name}' too.",
            )


def _mixed_experts(case: _Case) -> Iterator[Fault]:
    """PEFT copies the module that holds all experts, so all tensors are full or none is."""
    if not case.limits.peft:
        return
    holders = {full_name(item) for item in case.plan.full if item.form == "experts"}
    for holder in sorted(holders):
        inside = [
            item for item in case.plan.modules
            if item.form == "experts" and full_name(item) == holder
        ]  # fmt: skip
        left_out = [
            item.module for item in case.plan.skipped
            if item.parameter.rpartition(".")[0] == holder and item.reason not in _BESIDE
        ]  # fmt: skip
        full = [item for item in inside if item.mode == "full"]
        if len(full) == len(inside) and not left_out:
            continue
        rank = next((item.rank for item in inside if item.mode == "lora"), None)
        other = next((item.module for item in inside if item.mode != "full"), *left_out[:1])
        yield Fault(
            kind="experts",
            modules=tuple(item.module for item in full),
            reason=f"'{full[0].module}' cannot be trained in full without '{other}': PEFT trains "
            f"all weights of '{holder}' in full, or none.",
            changes=tuple(case.lower(item, rank) for item in full),
        )


def _read_past(case: _Case) -> Iterator[Fault]:
    if case.limits.peft:
        for item in case.plan.lora_modules:
            if is_read_past(case.plan, item):
                yield _frozen(
                    "read_past",
                    item,
                    f"LoRA on '{item.module}' would have no effect: {case.plan.model.model_type} "
                    "models or their kernels read the weight past the adapter.",
                )


def _modes(case: _Case) -> Iterator[Fault]:
    limits, trainer = case.limits, case.limits.trainer
    for item in case.plan.modules:
        if item.mode == "full" and not limits.full:
            yield Fault(
                kind="mode",
                modules=(item.module,),
                reason=f"{trainer} cannot train '{item.module}' in full beside LoRA.",
                changes=(case.lower(item),),
            )
        elif item.mode == "lora" and not limits.lora:
            yield _frozen("mode", item, f"{trainer} cannot put LoRA on '{item.module}'.")
        elif (
            item.mode == "lora" and not limits.parameters and needs_parameter_name(case.plan, item)
        ):
            yield _frozen(
                "mode",
                item,
                f"{trainer} cannot put LoRA on '{item.module}': only the name of its parameter "
                "reaches it.",
            )
        elif item.mode == "lora" and item.form not in limits.forms:
            yield _frozen(
                "mode",
                item,
                f"{trainer} cannot put LoRA on '{item.module}', which is no linear layer.",
            )
        elif item.mode == "lora" and not limits.head and _is_head(item):
            yield _frozen(
                "mode", item, f"{trainer} cannot put LoRA on the output head '{item.module}'."
            )


def _is_head(item: PlanModule) -> bool:
    return item.layer is None and item.form != "embedding"


def _ranks(case: _Case) -> Iterator[Fault]:
    ranks = {item.rank for item in case.plan.lora_modules}
    if case.limits.ranks or len(ranks) < 2:
        return
    rank = common_rank(case.plan)
    items = [item for item in case.plan.lora_modules if item.rank != rank]
    yield Fault(
        kind="ranks",
        modules=tuple(item.module for item in items),
        reason=f"{case.limits.trainer} knows one LoRA rank for all modules.",
        changes=tuple(Change(module=item.module, mode="lora", rank=rank) for item in items),
    )


def _whole(case: _Case) -> Iterator[Fault]:
    plan, limits = case.plan, case.limits
    demanding = limits.peft or not (limits.full and limits.lora)
    if not plan.full and not plan.lora_modules:
        if demanding:
            yield Fault(kind="whole", modules=(), reason="The plan trains nothing.", changes=())
    elif not plan.lora_modules and not limits.only_full:
        yield Fault(
            kind="whole",
            modules=(),
            reason=f"{limits.trainer} cannot run a plan without LoRA.",
            changes=_last_to_lora(case),
        )
    elif not plan.full and not limits.only_lora:
        reason = f"{limits.trainer} cannot run a plan without modules trained in full."
        yield Fault(kind="whole", modules=(), reason=reason, changes=())


def _last_to_lora(case: _Case) -> tuple[Change, ...]:
    """LoRA for the module of the lowest score that can have it; one that was asked for last."""
    order = sorted(case.plan.full, key=lambda item: (item.locked, -item.position))
    changes = (case.lower(item) for item in order)
    return tuple(change for change in changes if change.mode == "lora")[:1]


_RULES: tuple[Callable[[_Case], Iterator[Fault]], ...] = (
    _modes,
    _tied_weights,
    _read_past,
    _mixed_experts,
    _clashing_names,
    _wrapped_owners,
    _ranks,
    _whole,
)
