"""What a trainer cannot express, and the nearest plan that it can run."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import get_args

from hlscore.artifacts.plan import Plan, PlanModule, PlanSkipped
from hlscore.errors import UsageError
from hlscore.exporters.adapter_config import (
    TIEABLE,
    is_read_past,
    lora_name,
    needs_parameter_name,
    never_packed,
    ties_weights,
)
from hlscore.planning.memory import Choice
from hlscore.planning.parts import (
    choice_of,
    common_rank,
    default_rank,
    equal_cost_rank,
    lora_instead,
    revise,
)
from hlscore.records import Form, tied_modules

SEED_ADAPTER = (
    "`hlscore export --to seed-adapter` writes an untrained adapter that carries the whole plan "
    "and that this trainer can start from."
)
_SHOWN = 3
_UNPACKED = "Plan again with --base 16."

# Rules of `hlscore check` that a plan can break: how a module is trained, a tied weight, a name
# that matches others too, experts that can only be trained together, a weight that is read without
# its adapter, the number of ranks, and the plan as a whole.
MODE, TIED, NAME, EXPERTS = "HLS401", "HLS402", "HLS403", "HLS404"
READ_PAST, RANKS, WHOLE = "HLS405", "HLS406", "HLS407"


class ExportError(UsageError):
    """A trainer cannot express the plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a trainer can express: refusals and nearest plans follow from it."""

    trainer: str  # what to call it
    full: bool = True  # whether it can train modules in full beside LoRA
    lora: bool = True  # whether it can train LoRA
    ranks: bool = True  # whether modules can have ranks of their own
    # Whether LoRA can go on a weight that is no linear layer: routers, experts, and the linear
    # layers that PEFT reaches only by parameter name.
    parameters: bool = True
    forms: tuple[Form, ...] = get_args(Form)  # what LoRA can sit on, apart from that
    head: bool = True  # whether LoRA can go on the output head
    only_full: bool = True  # whether a plan without LoRA can be run
    only_lora: bool = True  # whether a plan without full modules can be run
    peft: bool = True  # whether modules are found by PEFT, with its limits
    bits: tuple[int, ...] = (16, 8, 4)  # bits of the base weights that it can train on
    # Bits at which it packs every linear layer, also those that the plan trains in full.
    packs: tuple[int, ...] = ()
    unties: bool = False  # whether it unties a tied embedding that is trained in full
    starts_from_adapter: bool = False  # whether it can carry the whole plan by a seed adapter

    @property
    def subject(self) -> str:
        """What to call the trainer where a sentence begins."""
        return f"A{self.trainer[1:]}" if self.trainer.startswith("a ") else self.trainer


PEFT_LIMITS = Limits(trainer="PEFT")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in a plan that a trainer cannot do."""

    code: str  # of the rule of `hlscore check` that it breaks
    modules: tuple[str, ...]  # full names; empty for the plan as a whole
    reason: str  # what cannot be done and why, in one sentence
    changes: tuple[Choice, ...] = ()  # the nearest that can be done; empty where nothing is
    way_out: str = ""  # what to do where no change of the plan helps


def faults(plan: Plan, limits: Limits) -> list[Fault]:
    """Everything in a plan that a trainer cannot do, the faults of single modules first."""
    case = _Case(plan, limits)
    return [*(fault for item in plan.modules for fault in case.of_module(item)), *case.of_plan()]


def check_limits(plan: Plan, limits: Limits) -> None:
    """Refuse a plan that a trainer cannot run."""
    if found := faults(plan, limits):
        raise _refusal(found, limits)


def _refusal(found: list[Fault], limits: Limits) -> ExportError:
    """The error for a plan that a trainer cannot run, with the first reasons and the way out."""
    shown = " ".join(fault.reason for fault in found[:_SHOWN])
    more = f" And {len(found) - _SHOWN} more." if len(found) > _SHOWN else ""
    ways = [SEED_ADAPTER] if limits.starts_from_adapter else []
    ways += [fault.way_out for fault in found if fault.way_out]
    if lock := next((change.lock for fault in found for change in fault.changes), ""):
        ways.append(
            "`hlscore export --nearest` writes the nearest plan that it can run; or plan again, "
            f"with `hlscore plan ... --lock '{lock}'` and the like."
        )
    elif not any(fault.way_out for fault in found):
        ways.append("Plan again with another budget or other locks.")
    return ExportError(
        f"{limits.subject} cannot run this plan. {shown}{more}", hint=" ".join(dict.fromkeys(ways))
    )


def nearest(plan: Plan, limits: Limits) -> tuple[Plan, tuple[str, ...]]:
    """The nearest plan that a trainer can run, which costs no more, and a sentence per change.

    The sentences are among the notes of the new plan. Raises ExportError where no plan near it
    can be run, such as for a plan that trains nothing.
    """
    settled: dict[str, list[Fault]] = {}
    current = plan
    # Every round trains less of some module, or gives all adapters one rank.
    while found := faults(current, limits):
        changes: dict[str, Choice] = {}
        for fault in found:
            # What another fault changes already is looked at again in the next round.
            if fault.changes and not any(item.row.module in changes for item in fault.changes):
                changes |= {item.row.module: item for item in fault.changes}
                settled.setdefault(fault.code, []).append(fault)
        if not changes:
            raise _refusal(found, limits)
        current = revise(current, changes.values())
    if not settled:
        return plan, ()
    adapters = current.lora_modules
    if adapters and not limits.ranks:  # full modules and higher ranks leave room for a higher rank
        rank = equal_cost_rank(current, plan)
        current = revise(current, [Choice(row=item, mode="lora", rank=rank) for item in adapters])
    now = {item.module: str(choice_of(item)) for item in current.modules}
    ranks, sentences = settled.pop(RANKS, []), []
    for of_code in settled.values():
        for fault in of_code[:_SHOWN]:
            shown = "; ".join(now[change.row.module] for change in fault.changes)
            sentences.append(f"{fault.reason} Now {shown}.")
        if len(of_code) > _SHOWN:
            sentences.append(f"And {len(of_code) - _SHOWN:,} more like these.")
    if ranks:
        sentences.append(
            f"{ranks[0].reason} Now rank {current.lora_modules[0].rank} for all "
            f"{len(current.lora_modules):,} adapters, at equal cost."
        )
    before, after = plan.totals.trained_params, current.totals.trained_params
    sentences.append(f"Trained parameters: {before:,} in the plan, {after:,} in the export.")
    notes = [f"Changed for {limits.trainer}: {sentence}" for sentence in sentences]
    return revise(current, (), notes), tuple(sentences)


class _Case:
    """A plan held against the limits of a trainer."""

    def __init__(self, plan: Plan, limits: Limits) -> None:
        self.plan, self.limits = plan, limits
        self._tied = tied_modules(plan.skipped)
        weights: list[PlanModule | PlanSkipped] = [*plan.modules, *plan.skipped]
        self._modules = sorted(item.module for item in weights)
        names = {name for item in weights for name in (item.module, item.parameter)}
        # Every name of the model that the plan knows: modules, parameters, and what holds them.
        every = {part for name in names for part in accumulate(name.split("."), "{}.{}".format)}
        self._reversed = sorted(name[::-1] for name in every)
        owned = ((_owner(item), item.module) for item in plan.modules)
        self._first_of = dict(sorted(owned, reverse=True))
        self._owners = sorted(self._first_of)

    def against_lora(self, item: PlanModule) -> Iterator[tuple[str, str]]:
        """Why a module cannot have LoRA, whatever its mode."""
        plan, limits, name = self.plan, self.limits, f"'{item.module}'"
        by_parameter = needs_parameter_name(plan, item)
        where = ""
        if not limits.lora:
            where = name
        elif by_parameter and not limits.parameters:
            where = f"{name}: only the name of its parameter reaches it"
        elif item.form not in limits.forms:
            where = f"{name}, which is not a linear layer"
        elif not limits.head and item.layer is None and item.form != "embedding":
            where = f"the output head {name}"
        if where:
            yield MODE, f"{limits.subject} cannot put LoRA on {where}."
        if not limits.peft:
            return
        if item.module in self._tied:
            yield TIED, f"LoRA on {name} would merge wrongly: its weight is tied."
        if is_read_past(plan, item):
            yield (
                READ_PAST,
                f"LoRA on {name} would have no effect: {plan.model.model_type} models or their "
                "kernels read the weight without the adapter.",
            )
        if reason := self._matches_too(item, f".{lora_name(plan, item)}"):
            yield NAME, reason
        # LoRA on a parameter wraps the module that owns it: names inside it change, and the
        # wrapper takes its input by position only.
        owner = _owner(item)
        if by_parameter and (inside := next(_starting(self._owners, f"{owner}."), "")):
            yield (
                NAME,
                f"LoRA on {name} cannot be trained: PEFT would wrap '{owner}', which holds "
                f"'{self._first_of[inside]}' too.",
            )

    def of_module(self, item: PlanModule) -> Iterator[Fault]:
        """What the trainer cannot do with a module."""
        names, frozen = (item.module,), (Choice(row=item, mode="frozen"),)
        if item.mode == "lora":
            for code, reason in self.against_lora(item):
                yield Fault(code, names, reason, frozen)
        if item.mode != "full":
            return
        if not self.limits.full:
            reason = f"{self.limits.subject} cannot train '{item.module}' in full beside LoRA."
            yield Fault(MODE, names, reason, (self._lower(item),))
        if not self.limits.peft:
            return
        others = [other.module for other in self.plan.skipped if other.tied_to == item.module]
        leaves = {name.rpartition(".")[2] for name in (item.module, *others)}
        if others and (item.form != "embedding" or not leaves <= {*TIEABLE}):
            reason = (
                f"'{item.module}' cannot be trained in full: its weight is tied, and PEFT keeps "
                "only embed_tokens and lm_head tied."
            )
            yield Fault(TIED, names, reason, frozen)
        if reason := self._matches_too(item, item.holder):
            yield Fault(NAME, names, reason, frozen)
        start = f"{item.holder}."
        for inner in _starting(self._modules, start):
            # The tensors of fused experts lie side by side in one module, with their biases.
            if item.form != "experts" or f"{inner.rpartition('.')[0]}." != start:
                reason = (
                    f"'{item.module}' cannot be trained in full alone: '{inner}' lies inside "
                    f"'{item.holder}' and would be trained with it."
                )
                yield Fault(NAME, names, reason, (self._lower(item),))
                break

    def of_plan(self) -> Iterator[Fault]:
        """What the trainer cannot do with several modules, or with the plan as a whole."""
        plan, limits, trainer = self.plan, self.limits, self.limits.subject

        # Experts of which only some are full: PEFT copies the module that holds all of them.
        experts = [item for item in plan.modules if item.form == "experts" and limits.peft]
        for holder in sorted({_owner(item) for item in experts if item.mode == "full"}):
            inside = [item for item in experts if _owner(item) == holder]
            full = [item for item in inside if item.mode == "full"]
            others = [item.module for item in inside if item.mode != "full"]
            # Parameters beside the weights, such as biases, are trained with them anyway.
            others += [
                item.module for item in plan.skipped
                if _owner(item) == holder and item.left_out not in ("not_linear", "custom")
            ]  # fmt: skip
            if others:
                rank = next((item.rank for item in inside if item.mode == "lora"), None)
                yield Fault(
                    EXPERTS,
                    tuple(item.module for item in full),
                    f"'{full[0].module}' cannot be trained in full without '{others[0]}': PEFT "
                    f"trains all weights of '{holder}' in full, or none.",
                    tuple(self._lower(item, rank) for item in full),
                )

        adapters = plan.lora_modules
        if not limits.ranks and len({item.rank for item in adapters}) > 1:
            rank = common_rank(plan)
            lowered = [item for item in adapters if item.rank != rank]
            names = tuple(item.module for item in lowered)
            changes = tuple(Choice(row=item, mode="lora", rank=rank) for item in lowered)
            yield Fault(RANKS, names, f"{trainer} has one LoRA rank for all modules.", changes)

        # Packed weights that cannot be trained, and tied ones that would be untied.
        bits = plan.memory.base_bits
        if bits not in limits.bits:
            reason = f"{trainer} trains on weights of 16 bits only."
            yield Fault(WHOLE, (), reason, way_out=_UNPACKED)
        elif bits in limits.packs:
            for module, what in never_packed(plan):
                reason = (
                    f"{trainer} packs every linear layer into {bits} bits, also '{module}', which "
                    f"is to be {what}."
                )
                yield Fault(MODE, (module,), reason, way_out=_UNPACKED)
        if limits.unties and ties_weights(plan):
            reason = f"{trainer} would untie the embedding that the plan trains in full."
            yield Fault(TIED, (), reason, way_out=SEED_ADAPTER)

        # Plans of one mode that the trainer cannot run, and those that train nothing.
        if not plan.full and not adapters:
            if limits.peft or not (limits.full and limits.lora):
                yield Fault(WHOLE, (), "The plan trains nothing.")
        elif not adapters and not limits.only_full:
            # The module of the lowest score that can have LoRA; one that was asked for last.
            order = sorted(plan.full, key=lambda item: (item.locked, -item.position))
            lower = [change for change in map(self._lower, order) if change.mode == "lora"]
            reason = f"{trainer} cannot run a plan without LoRA."
            yield Fault(WHOLE, (), reason, tuple(lower[:1]))
        elif not plan.full and not limits.only_lora:
            yield Fault(WHOLE, (), f"{trainer} cannot run a plan without modules trained in full.")

    def _lower(self, item: PlanModule, rank: int | None = None) -> Choice:
        """The nearest thing below full fine-tuning of a module."""
        if any(self.against_lora(item)):
            return Choice(row=item, mode="frozen")
        if not self.limits.ranks:
            rank = default_rank(self.plan)
        return lora_instead(self.plan, item, rank or self.plan.lora.rank, lower=self.limits.ranks)

    def _matches_too(self, item: PlanModule, end: str) -> str:
        """Why a name cannot be used alone: PEFT matches the ends of names; empty if it can."""
        found = (name[::-1] for name in _starting(self._reversed, end[::-1]))
        other = next((name for name in found if len(name) > len(end)), "")
        return other and (
            f"'{item.module}' cannot be trained alone: PEFT matches the ends of names, and "
            f"'{other}' ends like it."
        )


def _owner(item: PlanModule | PlanSkipped) -> str:
    """Name of the module that owns a weight."""
    return item.parameter.rpartition(".")[0]


def _starting(names: Sequence[str], start: str) -> Iterator[str]:
    """The sorted names that begin with a text."""
    for place in range(bisect_left(names, start), len(names)):
        if not names[place].startswith(start):
            return
        yield names[place]
