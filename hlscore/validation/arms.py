"""The rivals of a plan, each a plan of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.artifacts.plan_making import make_plan
from hlscore.errors import UsageError
from hlscore.planning.allocation import allocate
from hlscore.records import NO_PROBES, ModelIdentity, ModuleRow, RunInfo, ScoreReport
from hlscore.scores.stratified import stratified_scores
from hlscore.settings import Baseline, MemorySettings, PlanSettings

LORA, MATCHED, RANDOM, PLAN, FULL = "lora", "matched", "random", "plan", "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        name: `lora`, `matched`, `random`, `plan` or `full`.
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
    """Make the rivals of a plan.

    `lora` has the plan's rank on every candidate, `matched` the one rank whose parameters come
    nearest to what the plan trains. `random` trains modules in full in the order of a control that
    is stratified by kind and size, as long as they fit into what the plan trains in full.

    Args:
        plan: The plan.
        model: The model that it is for.
        seeds: Seeds of the trainings.
        full: Whether full fine-tuning is among them.

    Returns:
        The arms, the plan and LoRA among them.

    Raises:
        UsageError: The plan trains no module in full.
    """
    if not plan.totals.full_modules:
        raise UsageError(
            "The plan trains no module in full: there is nothing to try out.",
            hint="Make one with a larger budget: `hlscore plan scores.parquet --budget 0.1`.",
        )
    rivals = _Rivals(plan, model)
    lora = rivals.uniform("all-lora", plan.lora.rank)
    matched = rivals.uniform("all-lora", matched_rank(plan))
    arms = [
        Arm(name=LORA, plans=dict.fromkeys(seeds, lora)),
        Arm(name=MATCHED, plans=dict.fromkeys(seeds, matched)),
        Arm(name=RANDOM, plans={seed: rivals.drawn(seed) for seed in seeds}),
        Arm(name=PLAN, plans=dict.fromkeys(seeds, plan)),
    ]
    if full:
        everything = rivals.uniform("all-full", plan.lora.rank)
        arms.append(Arm(name=FULL, plans=dict.fromkeys(seeds, everything)))
    return tuple(arms)


def matched_rank(plan: Plan) -> int:
    """Rank at which LoRA on every candidate trains about as many parameters as a plan."""
    each = sum(item.matrices * (item.in_features + item.out_features) for item in plan.modules)
    return max(1, round(plan.totals.trained_params / each))


class _Rivals:
    """Makes plans for the modules of another plan.

    Args:
        plan: The plan.
        model: The model that it is for.
    """

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

    def drawn(self, seed: int) -> Plan:
        """Modules in full drawn at random, of as many parameters as the plan has in full."""
        order = stratified_scores(self._rows, seed=seed)
        left, locks = self._plan.totals.full_params, []
        for row in sorted(self._rows, key=lambda row: -order[row.module]):
            if row.n_params <= left:
                left -= row.n_params
                locks.append(f"{row.module}=full")
        return self.uniform("all-lora", self._plan.lora.rank, tuple(locks))


def _row(item: PlanModule, control: float) -> ModuleRow:
    return ModuleRow(
        rank=None, module=item.module, parameter=item.parameter, layer=item.layer, kind=item.kind,
        block=item.block, matrices=item.matrices, matrices_reached=None,
        out_features=item.out_features, in_features=item.in_features, n_params=item.params,
        form=item.form, storage=item.storage, random=control, reason=item.remark,
    )  # fmt: skip


def _run_info(plan: Plan) -> RunInfo:
    made = plan.provenance
    return RunInfo(
        hlscore_version=made.hlscore_version, settings={}, seed=made.seed, score="random",
        rank=plan.lora.rank, estimator="none", device=made.device, dtype=made.dtype,
        versions=made.versions, sketch_size=None, wall_seconds=0.0, notes=(),
    )  # fmt: skip
