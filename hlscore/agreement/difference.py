"""What two plans decide differently, and how far their scores agree."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from hlscore.agreement.facts import Fact, Value, plan_facts, run_facts, side_by_side
from hlscore.agreement.kendall import RankAgreement, kendall
from hlscore.agreement.overlap import jaccard
from hlscore.agreement.sides import Side
from hlscore.artifacts.plan import Plan, PlanModule


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A module that the two plans train differently.

    Attributes:
        module: Full name.
        a: What the first plan does with it; `None` where it does not list it.
        b: What the second plan does with it.
    """

    module: str
    a: PlanModule | None
    b: PlanModule | None

    @property
    def known(self) -> PlanModule:
        """The side that lists it; of two the one with a block, which version 1 does not know."""
        sides = [side for side in (self.a, self.b) if side is not None]
        return max(sides, key=lambda side: bool(side.block))

    @property
    def other_shape(self) -> bool:
        """Whether both sides list it, with other shapes."""
        shapes = {
            (side.matrices, side.out_features, side.in_features)
            for side in (self.a, self.b)
            if side is not None
        }
        return len(shapes) > 1

    @property
    def crosses_full(self) -> bool:
        """Whether one side trains it in full and the other does not."""
        return (self.a is not None and self.a.mode == "full") != (
            self.b is not None and self.b.mode == "full"
        )

    @property
    def importance(self) -> tuple[bool, bool, int, str]:
        """Into or out of full first, then other modes, then ranks; within these by place."""
        same_mode = self.a is not None and self.b is not None and self.a.mode == self.b.mode
        places = [side.position for side in (self.a, self.b) if side is not None]
        return not self.crosses_full, same_mode, min(places), self.module


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Modules of a kind or a layer.

    Attributes:
        name: Kind with the block before it, or index of the decoder block; `None` outside them.
        modules: How many there are on either side.
        full_a: Trained in full by the first plan.
        full_b: Trained in full by the second plan.
        full_both: Trained in full by both.
    """

    name: str | int | None
    modules: int
    full_a: int
    full_b: int
    full_both: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Everything that two plans differ in.

    Attributes:
        a: The first side.
        b: The second side.
        facts: What is known of both, side by side.
        moves: Modules that are trained differently, the most important first.
        common: Modules that both list.
        only_a: Modules that only the first lists.
        only_b: Modules that only the second lists.
        other_shape: Modules that both list, with other shapes.
        jaccard_full: Jaccard index of the modules in full.
        shared_full: Modules in full on both sides.
        expected_full: How many that would be if each side had drawn from the common modules.
        jaccard_decisions: Jaccard index of module, mode and rank.
        agreement: Kendall's tau of the scores over the common modules.
        by_kind: Modules in full by kind.
        by_layer: Modules in full by decoder block.
    """

    a: Side
    b: Side
    facts: tuple[Fact, ...]
    moves: tuple[Move, ...]
    common: int
    only_a: int
    only_b: int
    other_shape: int
    jaccard_full: float
    shared_full: int
    expected_full: float | None
    jaccard_decisions: float
    agreement: RankAgreement
    by_kind: tuple[Group, ...]
    by_layer: tuple[Group, ...]

    @property
    def same_structure(self) -> bool:
        """Whether both are for models with the same modules of the same shapes."""
        first, second = self.a.plan.model.fingerprint, self.b.plan.model.fingerprint
        return first.structure == second.structure

    @property
    def same_weights(self) -> bool:
        """Whether both are for the same weights."""
        first, second = self.a.plan.model.fingerprint, self.b.plan.model.fingerprint
        return first.weights == second.weights

    @property
    def none(self) -> bool:
        """Whether nothing differs at all."""
        return self.a.plan == self.b.plan


def difference(a: Side, b: Side) -> Difference:
    """Hold two plans against each other, module by module."""
    first, second = _by_name(a.plan), _by_name(b.plan)
    names = [name for name in first if name in second]
    every = [*first, *(name for name in second if name not in first)]
    pairs = {name: Move(module=name, a=first.get(name), b=second.get(name)) for name in every}
    moves = [move for move in pairs.values() if _decision(move.a) != _decision(move.b)]
    full_a, full_b = ({item.module for item in side.plan.full} for side in (a, b))
    shared = [full.intersection(names) for full in (full_a, full_b)]
    return Difference(
        a=a,
        b=b,
        facts=side_by_side([_facts(side.plan) for side in (a, b)]),
        moves=tuple(sorted(moves, key=lambda move: move.importance)),
        common=len(names),
        only_a=len(first) - len(names),
        only_b=len(second) - len(names),
        other_shape=sum(move.other_shape for move in pairs.values()),
        jaccard_full=jaccard(full_a, full_b),
        shared_full=len(full_a & full_b),
        expected_full=len(shared[0]) * len(shared[1]) / len(names) if names else None,
        jaccard_decisions=jaccard(
            *([_decision(item) for item in side.plan.modules] for side in (a, b))
        ),
        agreement=kendall(
            [first[name].score for name in names], [second[name].score for name in names]
        ),
        by_kind=_groups(pairs, lambda item: f"{item.block}.{item.kind}".lstrip(".")),
        by_layer=_groups(pairs, lambda item: item.layer),
    )


def _facts(plan: Plan) -> dict[str, Value]:
    return plan_facts(plan) | run_facts(plan.model, plan.provenance)


def _by_name(plan: Plan) -> dict[str, PlanModule]:
    return {item.module: item for item in plan.modules}


def _decision(item: PlanModule | None) -> Hashable:
    return None if item is None else (item.module, item.mode, item.rank)


def _groups(
    pairs: dict[str, Move], name_of: Callable[[PlanModule], str | int | None]
) -> tuple[Group, ...]:
    found: dict[str | int | None, list[Move]] = {}
    for move in pairs.values():
        found.setdefault(name_of(move.known), []).append(move)
    # Layers by number, those outside the blocks last; kinds by name.
    order = sorted(found, key=lambda name: (name is None, name if name is not None else ""))
    return tuple(_group(name, found[name]) for name in order)


def _group(name: str | int | None, moves: list[Move]) -> Group:
    full = [
        tuple(side is not None and side.mode == "full" for side in (move.a, move.b))
        for move in moves
    ]
    return Group(
        name=name,
        modules=len(moves),
        full_a=sum(a for a, _ in full),
        full_b=sum(b for _, b in full),
        full_both=sum(a and b for a, b in full),
    )
