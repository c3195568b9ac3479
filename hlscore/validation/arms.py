"""The rivals of a plan, each a plan of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.artifacts.plan_making import make_plan
from hlscore.errors import UsageError
from hlscore.planning.allocation import allocate
from hlscore.planning.baselines import by_size, nearest_rank
from hlscore.planning.choice import fill
from hlscore.planning.options import is_unreached
from hlscore.reasons import UNMOVED, UNREACHED, tied_modules
from hlscore.records import NO_PROBES, ModelIdentity, ModuleRow, RunInfo, ScoreReport
from hlscore.scores.stratified import stratified_scores
from hlscore.settings import Baseline, MemorySettings, PlanSettings

LORA, MATCHED, RANDOM, LARGEST, PLAN, FULL = (
    "lora", "matched", "random", "largest", "plan", "full",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        name: `lora`, `matched`, `random`, `largest`, `plan` or `full`.
        plans: The plan of each seed; only `random` has different ones.
    """

    name: str
    plans: Mapping[int, Plan]

    @property
    def trained_params(self) -> float:
        """Trained parameters, the mean over seeds."""
        return sum(plan.totals.trained_params for plan in self.plans.values()) / len(self.plans)

    @property
    def memory_bytes(self) -> int:
        """Predicted training memory of its first plan."""
        return next(iter(self.plans.values())).memory.total_bytes


def make_arms(
    plan: Plan, model: ModelIdentity, seeds: tuple[int, ...], *, full: bool
) -> tuple[Arm, ...]:
    """A plan and its rivals, each with a plan for each seed.

    `lora` has the plan's rank on every candidate, `matched` the one rank whose parameters come
    nearest to what the plan trains. `random` trains modules in full in the order of a control that
    is stratified by kind and size, as long as they fit into what the plan trains in full; of a plan
    with a rank for each module it deals the ranks anew among modules of one shape. `largest` trains
    the largest modules in full, as many parameters as the plan; plans of ranks have no such rival.
    """
    if not plan.totals.full_modules and not plan.lora.ranks:
        raise UsageError(
            "The plan trains no module in full: there is nothing to try out.",
            hint="Make one with a larger budget: `hlscore plan scores.parquet --budget 0.1`.",
        )
    rivals = _Rivals(plan, model)
    lora = rivals.uniform("all-lora", plan.lora.rank)
    adapted = (item for item in lora.modules if item.mode == "lora")
    rank = nearest_rank(plan.totals.trained_params, adapted)
    matched = rivals.uniform("all-lora", rank)
    arms = [
        Arm(name=LORA, plans=dict.fromkeys(seeds, lora)),
        Arm(name=MATCHED, plans=dict.fromkeys(seeds, matched)),
        Arm(name=RANDOM, plans={seed: rivals.random(seed) for seed in seeds}),
        Arm(name=PLAN, plans=dict.fromkeys(seeds, plan)),
    ]
    if not plan.lora.ranks:
        arms.insert(3, Arm(name=LARGEST, plans=dict.fromkeys(seeds, rivals.largest())))
    if full:
        everything = rivals.uniform("all-full", plan.lora.rank)
        arms.append(Arm(name=FULL, plans=dict.fromkeys(seeds, everything)))
    return tuple(arms)


def drawn_modules(rows: Sequence[ModuleRow], *, seed: int, params: int) -> list[str]:
    """Names of modules drawn at random, spread over kinds and sizes, of at most `params` together.

    The rest of `params` is smaller than any module that was not drawn.
    """
    drawn = stratified_scores(rows, seed=seed)
    order = sorted(range(len(rows)), key=lambda place: -drawn[rows[place].module])
    return [rows[place].module for place in fill(order, [row.n_params for row in rows], params)]


class _Rivals:
    """Makes plans for the modules of another plan."""

    def __init__(self, plan: Plan, model: ModelIdentity) -> None:
        self._plan = plan
        self._rows = tuple(_row(item, 0.5) for item in plan.modules)
        self._report = ScoreReport(
            rows=self._rows, model=model, probes=NO_PROBES, run=_run_info(plan)
        )
        self._memory = MemorySettings(
            optimizer=plan.memory.optimizer, master=plan.memory.master,
            base_bits=plan.memory.base_bits, train_batch=plan.memory.train_batch,
            train_length=plan.memory.train_length,
        )  # fmt: skip

    def uniform(self, baseline: Baseline, rank: int, locks: tuple[str, ...] = ()) -> Plan:
        """The same for every module, but for locks."""
        alpha = max(1, round(self._plan.lora.alpha * rank / self._plan.lora.rank))
        settings = PlanSettings(
            baseline=baseline, score="random", rank=rank, alpha=alpha, locks=locks,
            memory=self._memory,
        )  # fmt: skip
        made = make_plan(self._report, allocate(self._report, settings))
        # The report knows candidates only; a plan must know the other weights of its model too.
        return made.model_copy(update={"skipped": self._plan.skipped})

    def random(self, seed: int) -> Plan:
        """The control: what the plan decides, decided by chance."""
        return self._dealt(seed) if self._plan.lora.ranks else self._drawn(seed)

    def largest(self) -> Plan:
        """The largest modules in full, as many parameters as the plan has in full."""
        reached = [row for row in self._rows if not is_unreached(row)]
        sizes = by_size(reached, self._plan.provenance.seed)
        order = sorted(reached, key=lambda row: -sizes[row.module])
        taken = fill(
            range(len(order)), [row.n_params for row in order], self._plan.totals.full_params
        )
        locks = tuple(f"{order[place].module}=full" for place in taken)
        return self.uniform("all-lora", self._plan.lora.rank, locks)

    def _dealt(self, seed: int) -> Plan:
        """What the plan does with its modules, dealt anew among those of one shape."""
        generator, fixed = np.random.default_rng(seed), set(tied_modules(self._rows))
        fixed |= {row.module for row in self._rows if is_unreached(row)}
        alike: dict[tuple[object, ...], list[PlanModule]] = {}
        for item in self._plan.modules:
            alone = item.module if item.module in fixed else ""
            shape = (item.form, item.matrices, item.out_features, item.in_features, alone)
            alike.setdefault(shape, []).append(item)
        locks = tuple(
            f"{item.module}={f'rank:{taken.rank}' if taken.mode == 'lora' else taken.mode}"
            for items in alike.values()
            for item, place in zip(items, generator.permutation(len(items)), strict=True)
            for taken in (items[place],)
        )
        return self.uniform("all-lora", self._plan.lora.rank, locks)

    def _drawn(self, seed: int) -> Plan:
        """Modules in full drawn at random, of as many parameters as the plan has in full."""
        reached = [row for row in self._rows if not is_unreached(row)]
        drawn = drawn_modules(reached, seed=seed, params=self._plan.totals.full_params)
        locks = tuple(f"{module}=full" for module in drawn)
        return self.uniform("all-lora", self._plan.lora.rank, locks)


def _row(item: PlanModule, control: float) -> ModuleRow:
    return ModuleRow(
        rank=None, module=item.module, parameter=item.parameter, layer=item.layer, kind=item.kind,
        block=item.block, matrices=item.matrices, matrices_reached=None,
        out_features=item.out_features, in_features=item.in_features, n_params=item.params,
        form=item.form, storage=item.storage, random=control, reason=item.remark,
        status="unreached" if item.remark in (UNMOVED, UNREACHED) else "scored",
    )  # fmt: skip


def _run_info(plan: Plan) -> RunInfo:
    made = plan.provenance
    return RunInfo(
        hlscore_version=made.hlscore_version, settings={}, seed=made.seed, score="random",
        rank=plan.lora.rank, estimator="none", device=made.device, dtype=made.dtype,
        versions=made.versions, sketch_size=None, wall_seconds=0.0, notes=(),
    )  # fmt: skip
