"""The question that an allocation answers: what each module is worth, and what rules bind it."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hlscore.artifacts.plan import PlanModule
from hlscore.errors import ArtifactError, BudgetError, UsageError
from hlscore.planning.budget import Budget, parse_budget
from hlscore.planning.knapsack import Numbers
from hlscore.planning.memory import Choice, Mode, activation_bytes, base_bytes
from hlscore.records import Candidate, Matrix, ModelIdentity, ModuleRow, ScoreReport, tied_modules
from hlscore.scores.registry import SCORES, Needs, Score, find_score, replicates_at, score_of
from hlscore.scores.rows import order_rows
from hlscore.settings import LARGEST_RANK, MemorySettings, PlanSettings, RankSettings
from hlscore.settings.plan import GatedPairs
from hlscore.wording import memory as memory_text

# Two matrices of one MLP whose outputs are multiplied, as the models of transformers name them:
# x = down(act(first(x)) * second(x)). Scores add up, gains of such a pair may not: what one of the
# two learns in full, the other need not. After short trials on small models plans with at most one
# of the two were better, after longer ones there is nothing to gain (benchmarks/evidence).
GATED_PAIRS = {"gate_proj": "up_proj", "w1": "w3", "wi_0": "wi_1"}
_LOCK_HINT = "Use PATTERN=full, =lora, =frozen or =rank:N, such as '*.down_proj=full'."


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What the user pins modules to."""

    pattern: str  # glob over full module names
    mode: Mode
    rank: int | None = None  # LoRA rank; `None` where the solver may choose one of its ranks

    def matches(self, modules: Sequence[str]) -> list[str]:
        """Modules that the lock is for."""
        return [name for name in modules if fnmatch.fnmatchcase(name, self.pattern)]


def parse_lock(text: str) -> Lock:
    """Read a lock."""
    pattern, _, what = text.rpartition("=")
    if not pattern:
        raise UsageError(f"--lock '{text}' is not PATTERN=MODE.", hint=_LOCK_HINT)
    match what.split(":", 1):
        case ["full" | "frozen" | "lora" as mode]:
            return Lock(pattern=pattern, mode=mode)
        case ["rank", number]:
            if number.isascii() and number.isdecimal() and 1 <= int(number[:5]) <= LARGEST_RANK:
                return Lock(pattern=pattern, mode="lora", rank=int(number))
            raise UsageError(
                f"--lock '{text}' has no rank of 1 to {LARGEST_RANK}.", hint=_LOCK_HINT
            )
    raise UsageError(f"--lock '{text}' does not end in a mode.", hint=_LOCK_HINT)


def locks_of(
    texts: Sequence[str], modules: Sequence[str], tied: Collection[str]
) -> dict[str, Lock]:
    """The lock of each locked module, by name; of several that match, the last one counts."""
    found = {}
    for text in texts:
        lock = parse_lock(text)
        names = lock.matches(modules)
        if not names:
            raise UsageError(
                f"--lock '{text}' matches none of the candidate modules.",
                hint=f"Globs are matched against full names such as {modules[0]}.",
            )
        found.update(dict.fromkeys(names, lock))
    for module, lock in found.items():
        if lock.mode == "lora" and module in tied:
            raise UsageError(
                f"--lock '{lock.pattern}' asks for LoRA on '{module}', whose weight is tied.",
                hint="LoRA on a tied weight merges wrongly: use =full or =frozen.",
            )
    return found


def uniform_choice(
    row: ModuleRow | PlanModule,
    mode: Mode,
    rank: int,
    tied: Collection[str],
    lock: Lock | None = None,
) -> Choice:
    """What is done with a module where one mode and rank are meant for all.

    A lock counts more. What the loss never reaches stays frozen, and so does a tied weight where
    LoRA is meant.
    """
    if lock is not None:
        mode, rank = lock.mode, lock.rank or rank
    elif row.unreached or (mode == "lora" and row.module in tied):
        mode = "frozen"
    return Choice(row=row, mode=mode, rank=rank if mode == "lora" else 0)


def groups_of(rows: Sequence[Matrix]) -> dict[str, list[int]]:
    """Places of what is trained in full together: PEFT copies the module that holds experts."""
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row.holder, []).append(place)
    return groups


def without_lesser(
    rows: Sequence[Matrix],
    values: Numbers,
    full: Collection[str],
    allowed: GatedPairs,
) -> Numbers:
    """Values of which those of the lesser module of each gated pair are unknown.

    That is the one with the lower value, of equal ones the later one; of a pair with a module that
    is trained in full anyway, the other one. Expert stacks are no pair: those of one module are
    chosen together.

    Args:
        values: Of each row, float64 [rows, sets of values]; each set has lesser ones of its own.
        full: Names of modules that are locked to full.

    Returns:
        A copy with NaN for what may not be chosen.
    """
    kept = values.copy()
    if allowed == "both":
        return kept
    known = np.where(np.isnan(values), -np.inf, values)
    places = {row.module: place for place, row in enumerate(rows) if row.form != "experts"}
    for module, place in places.items():
        parent, _, kind = module.rpartition(".")
        partner = f"{parent}.{GATED_PAIRS[kind]}" if kind in GATED_PAIRS else ""
        if partner not in places:
            continue
        first, second = sorted((place, places[partner]))
        if module in full or partner in full:
            kept[[row for row in (first, second) if rows[row].module not in full]] = np.nan
            continue
        later_wins = known[first] < known[second]
        kept[first, later_wins] = np.nan
        kept[second, ~later_wins] = np.nan
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything that an allocation depends on."""

    report: ScoreReport
    settings: PlanSettings
    rows: tuple[ModuleRow, ...]  # the candidates, the best first by the score
    values: Numbers  # score of each row at the plan's rank, NaN where unknown, float64 [rows]
    # Resamples of each score, all equally many; empty ones for some scores and ranks.
    replicates: list[tuple[float, ...]]
    score: Score
    budget: Budget
    limit: int  # the most that the budget allows, in its unit
    locks: Mapping[str, Lock]  # of each locked module, by name
    tied: frozenset[str]  # modules whose weight another one shares
    # Places of the rows that may be chosen to be trained in full, by what is trained together: not
    # where a module of the group is locked, unreached or left out.
    groups: tuple[tuple[int, ...], ...]

    def asks_too_much(self, needs: str, allows: str) -> BudgetError:
        """The error for a budget that what has to be trained exceeds."""
        asked = {"--lock": self.locks, "--min-rank": self.settings.min_rank}
        flags = [flag for flag, given in asked.items() if given]
        return BudgetError(
            f"{' and '.join(flags) or 'The plan'} asks for {needs}; a budget of "
            f"{self.budget.text} allows {allows}.",
            hint="Raise the budget, lock fewer modules"
            f"{', or lower --min-rank' if self.settings.min_rank else ''}.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The answer: one choice per candidate."""

    choices: tuple[Choice, ...]  # of each row, in order
    solver: str = "none"  # `sorted`, `HiGHS`, or `none` where there was nothing to choose
    value: float = 0.0  # sum of the selected values
    bound: float = 0.0  # upper bound of that sum over all choices that fit
    # Share of resamples in which each row is trained in full; empty where it is unknown for all.
    probability: tuple[float | None, ...] = ()
    lesser: tuple[int, ...] = ()  # places of the rows ruled out by the other of their gated pair


def problem_of(report: ScoreReport, settings: PlanSettings) -> Problem:
    """Put together what an allocation depends on; refuse scores that cannot decide."""
    if not report.candidates:
        raise ArtifactError("The report holds no candidate modules.")
    score = score_in(settings)
    rows = order_rows(report.candidates, score, settings.rank)
    values = np.array([score_of(row, score, settings.rank) for row in rows], dtype=np.float64)
    if np.isnan(values).all():
        made = {
            "gradients": "rank with probes: without --data none",
            "whole gradients": "rank with probes and --estimator exact",
            "weights": "rank with --weight-scores, or with --data none",
            "nothing": "rank again",
        }
        raise UsageError(
            f"The report holds no value of '{score.name}'.",
            hint=f"Choose another --score, or {made[score.needs]}.",
        )
    tied, budget = tied_modules(report.rows), parse_budget(settings.budget)
    locks = locks_of(settings.locks, [row.module for row in rows], tied)
    groups = groups_of(rows)
    for row in report.rows:
        stack = row.form == "experts" and not row.is_candidate
        if stack or row.unreached or row.module in locks:
            groups.pop(row.holder, None)
    return Problem(
        report=report,
        settings=settings,
        rows=rows,
        values=values,
        replicates=replicates_at(rows, score, settings.rank, report.run.rank),
        score=score,
        budget=budget,
        limit=budget.limit([row.n_params for row in rows]),
        locks=locks,
        tied=tied,
        groups=tuple(map(tuple, groups.values())),
    )


def score_in(settings: PlanSettings) -> Score:
    """The score that decides; refuses one that cannot choose the ranks asked for."""
    score = find_score(settings.score)
    if settings.ranks and not score.leaves_over:
        raise UsageError(
            f"--ranks needs a score with a value for each rank; '{score.name}' has none.",
            hint="Use --score hls, tail or l1_adam.",
        )
    return score


def check_plan_settings(settings: PlanSettings) -> None:
    """Refuse a bad score name, budget or lock before a model is loaded."""
    score_in(settings)
    parse_budget(settings.budget)
    for lock in settings.locks:
        parse_lock(lock)


def check_run_settings(settings: RankSettings) -> None:
    """Refuse a bad plan, or a score that the run cannot have, before a model is loaded."""
    check_plan_settings(settings.plan)
    missing: dict[Needs, str] = {}
    if settings.updates:
        missing = {"whole gradients": "is one of gradients, and --update reads weight updates"}
    elif settings.data.without_probes:
        why = "comes from gradients, and without probes there are none"
        missing = {"gradients": why, "whole gradients": why}
    score = find_score(settings.plan.score)
    if score.needs in missing:
        others = ", ".join(name for name, other in SCORES.items() if other.needs not in missing)
        remove = "" if settings.updates else ", or remove --data none"
        raise UsageError(
            f"The score '{score.name}' {missing[score.needs]}.",
            hint=f"Use --score with one of {others}{remove}.",
        )


def check_plan_for(
    model: ModelIdentity, modules: Sequence[Candidate], settings: PlanSettings
) -> None:
    """Refuse a budget or a lock that cannot work for a model, before it is probed."""
    candidates = [item for item in modules if not item.skipped]
    locks = locks_of(settings.locks, [item.module for item in candidates], tied_modules(modules))
    budget = parse_budget(settings.budget)
    if not settings.ranks and len(locks) < len(candidates):
        budget.check_one_fits([item.n_params for item in candidates])
    if budget.unit == "bytes":
        free_bytes(model, budget, settings.memory)


def free_bytes(model: ModelIdentity, budget: Budget, memory: MemorySettings, least: int = 0) -> int:
    """Bytes that trained modules may take within a budget of memory; refuses less than `least`."""
    base, activations = base_bytes(model, memory), activation_bytes(model.dimensions, memory)
    free = budget.amount - base - activations
    if free <= 0 or free < least:
        trained = f", what has to be trained at least {memory_text(least)}" if least else ""
        raise BudgetError(
            f"A training memory of {budget.text} is too small for {model.model}: the frozen "
            f"weights take {memory_text(base)}, activations about {memory_text(activations)}"
            f"{trained}.",
            hint="Give more memory, --base 4, another --optimizer, a lower --rank or a shorter "
            "--train-length.",
        )
    return free
