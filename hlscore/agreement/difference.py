"""What two plans decide differently, and how far their scores agree."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hlscore.agreement.measures import RankAgreement, jaccard, kendall, resampled_tau
from hlscore.agreement.sides import Facts, Side, facts_of, named, side_by_side
from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.errors import UsageError
from hlscore.planning.make_plan import make_plan, replan, run_settings
from hlscore.scores.registry import find_score, replicates_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A module with what each of two plans does with it; `None` where one does not list it."""

    module: str
    a: PlanModule | None
    b: PlanModule | None

    @property
    def items(self) -> list[PlanModule]:
        """What the plans that list it do with it, at least one."""
        return [item for item in (self.a, self.b) if item is not None]

    @property
    def full(self) -> tuple[bool, bool]:
        """Whether each side trains it in full."""
        a, b = (item is not None and item.mode == "full" for item in (self.a, self.b))
        return a, b

    @property
    def crosses_full(self) -> bool:
        """Whether one side trains it in full and the other does not."""
        return self.full[0] != self.full[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Modules of a kind or a layer, on either side."""

    # Kind with the block before it, or index of the decoder block; `None` outside them.
    name: str | int | None
    modules: int
    full_a: int  # how many the first plan trains in full
    full_b: int
    full_both: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Everything that two plans differ in."""

    sides: tuple[Side, ...]
    plans: tuple[Plan, ...]  # what the two files hold, or what their scores give
    facts: Facts
    moves: tuple[Move, ...]  # modules that are trained differently, the most important first
    common: int  # modules that both list
    only_a: int  # modules that only the first lists
    only_b: int
    other_shape: int  # modules that both list, with other shapes
    jaccard_full: float  # jaccard index of the modules in full
    shared_full: int  # modules in full on both sides
    # How many that would be if each side had drawn from the common modules.
    expected_full: float | None
    jaccard_decisions: float  # jaccard index of module, mode and rank
    agreement: RankAgreement  # of the scores of the common modules
    # Tau between two resamples of the scores of each side; `None` without.
    resampled: tuple[float | None, ...]
    by_kind: tuple[Group, ...]
    by_layer: tuple[Group, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs at all."""
        return self.plans[0] == self.plans[1]

    @property
    def same_structure(self) -> bool:
        """Whether both are for models with the same modules of the same shapes."""
        return len({plan.model.fingerprint.structure for plan in self.plans}) == 1

    @property
    def same_weights(self) -> bool:
        """Whether both are for the same weights."""
        return len({plan.model.fingerprint.weights for plan in self.plans}) == 1


def difference(sides: tuple[Side, ...], given: Mapping[str, Any]) -> Difference:
    """Compare two plans, module by module; scores are planned first.

    Args:
        given: Plan settings that were asked for, by name; others are those of a plan beside scores.
    """
    like = next((side.content for side in sides if isinstance(side.content, Plan)), None)
    if given and not any(side.from_scores for side in sides):
        raise UsageError(
            "Both files are plans: nothing is left to plan.",
            hint="Remove --budget, --score and --rank, or give score files.",
        )
    plans: list[Plan] = []
    resampled: list[float | None] = []
    for side in sides:
        content = side.content
        if isinstance(content, Plan):
            plans.append(content)
            resampled.append(None)
            continue
        with named(side.path):
            plan = (
                make_plan(content, run_settings(content, given))
                if like is None
                else replan(like, content, **given)
            )
        score, rank = find_score(plan.score.name), plan.lora.rank
        plans.append(plan)
        resampled.append(
            resampled_tau(replicates_at(content.candidates, score, rank, content.run.rank))
        )

    a, b = ({item.module: item for item in plan.modules} for plan in plans)
    every = [Move(module=name, a=a.get(name), b=b.get(name)) for name in {**a, **b}]
    common = [move for move in every if len(move.items) == 2]
    full_a, full_b = ({item.module for item in plan.full} for plan in plans)
    chances = [sum(move.full[at] for move in common) for at in (0, 1)]
    first, second = ([move.items[at].score for move in common] for at in (0, 1))
    return Difference(
        sides=sides,
        plans=tuple(plans),
        facts=side_by_side([facts_of(plan) for plan in plans]),
        moves=tuple(
            sorted((move for move in every if _decision(move.a) != _decision(move.b)), key=_order)
        ),
        common=len(common),
        only_a=len(a) - len(common),
        only_b=len(b) - len(common),
        other_shape=sum(
            len({(item.matrices, item.out_features, item.in_features) for item in move.items}) > 1
            for move in common
        ),
        jaccard_full=jaccard(full_a, full_b),
        shared_full=len(full_a & full_b),
        expected_full=chances[0] * chances[1] / len(common) if common else None,
        jaccard_decisions=jaccard(*(map(_decision, plan.modules) for plan in plans)),
        agreement=kendall(first, second),
        resampled=tuple(resampled),
        by_kind=_groups(every, lambda item: f"{item.block}.{item.kind}".lstrip(".")),
        by_layer=_groups(every, lambda item: item.layer),
    )


def _decision(item: PlanModule | None) -> Hashable:
    return item and (item.module, item.mode, item.rank)


def _order(move: Move) -> tuple[bool, bool, int, str]:
    """Into or out of full first, then other modes, then ranks; within these by place."""
    same_mode = len(move.items) == 2 and len({item.mode for item in move.items}) == 1
    place = min(item.position for item in move.items)
    return not move.crosses_full, same_mode, place, move.module


def _groups(
    moves: Sequence[Move], name_of: Callable[[PlanModule], str | int | None]
) -> tuple[Group, ...]:
    """Kinds by name; layers by number, what lies outside them last."""
    named: dict[str | int | None, list[Move]] = {}
    for move in moves:
        named.setdefault(name_of(move.items[0]), []).append(move)
    return tuple(
        Group(
            name=name,
            modules=len(named[name]),
            full_a=sum(move.full[0] for move in named[name]),
            full_b=sum(move.full[1] for move in named[name]),
            full_both=sum(all(move.full) for move in named[name]),
        )
        for name in sorted(named, key=lambda name: (name is None, "" if name is None else name))
    )
