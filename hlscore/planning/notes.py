"""What a reader of a plan should know beside its figures, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from hlscore.planning.coverage import Coverage
from hlscore.planning.gated import left_out
from hlscore.planning.module_options import is_unreached, stays_frozen
from hlscore.planning.problem import Problem, Solution

# Below it nothing is left that one would train for.
NOTHING_LEFT = 5e-4
_SHOWN = 3


def plan_notes(
    problem: Problem, solution: Solution, covered: Coverage | None, *, spent: int
) -> tuple[str, ...]:
    """All notes on a plan.

    Args:
        covered: What LoRA of the plan's rank and the plan follow; `None` without probes.
        spent: What the plan takes of its budget, in the budget's unit.
    """
    of_choice = (
        _baseline_notes(problem, spent)
        if problem.settings.baseline
        else _score_notes(problem, solution)
    )
    return (
        *_coverage_notes(covered),
        *_reward_notes(problem, solution),
        *_unreached_notes(problem),
        *_large_adapter_notes(problem, solution),
        *of_choice,
    )


def rank_counts(ranks: Iterable[int]) -> str:
    """How many modules have each rank: `12 of rank 4, 30 of rank 8, 150 of rank 64`."""
    found = sorted(Counter(ranks).items())
    return ", ".join(f"{number:,} of rank {rank}" for rank, number in found)


def _coverage_notes(covered: Coverage | None) -> Iterator[str]:
    if covered is None or 1 - covered.lora >= NOTHING_LEFT:
        return
    left = 1 - covered.lora
    share = f"{100 * left:.1g} %" if left > 1e-9 else "nothing"
    yield (
        f"LoRA of rank {covered.rank} leaves {share} of this {covered.of} over: full fine-tuning "
        "has next to nothing to add. Compare with a lower --rank, or train LoRA alone."
    )


def _reward_notes(problem: Problem, solution: Solution) -> Iterator[str]:
    full = any(item.mode == "full" for item in solution.options)
    with_rewards = problem.report.probes.objective == "grpo"
    if with_rewards and full and problem.settings.baseline is None:
        yield (
            "In trials with rewards (GRPO) on small models LoRA did not lag behind full "
            "fine-tuning: compare with --baseline lora-matched before you train this plan."
        )


def _unreached_notes(problem: Problem) -> Iterator[str]:
    rows = [row for row in problem.rows if is_unreached(row) and row.module not in problem.locks]
    names = sorted(row.module for row in rows)
    if names:
        trained = problem.report.run.scores_trainings
        what = "No training changed" if trained else "No probe gradient reaches"
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        yield (
            f"{what} {', '.join(names[:_SHOWN])}{more}: such modules stay frozen unless --lock "
            "says otherwise."
        )


def _large_adapter_notes(problem: Problem, solution: Solution) -> Iterator[str]:
    large = [
        item
        for item in solution.options
        if item.mode == "lora" and item.params >= item.row.n_params
    ]
    if large:
        yield (
            f"LoRA trains {sum(item.params for item in large):,} parameters in "
            f"{len(large):,} of {len(problem.rows):,} modules whose weights are "
            f"{sum(item.row.n_params for item in large):,}: use a smaller --rank."
        )


def _baseline_notes(problem: Problem, spent: int) -> Iterator[str]:
    yield f"A baseline ({problem.settings.baseline}), not the choice of a score."
    if spent > problem.limit:
        yield f"It takes more than the budget of {problem.budget.text} allows."


def _score_notes(problem: Problem, solution: Solution) -> Iterator[str]:
    settings, score = problem.settings, problem.score
    if len(problem.locks) == len(problem.rows):
        yield "Every module is locked: nothing was chosen."
        return
    missing = problem.scores.count(None)
    if missing:
        yield (
            f"{missing:,} of {len(problem.rows):,} modules have no '{score.name}' and come last; "
            "the reasons are in the report."
        )
    if settings.ranks:
        yield from _ranks_notes(problem, solution)
    else:
        apart = left_out(problem)
        if apart:
            yield (
                f"{len(apart):,} modules have LoRA because the other of their gated pair, such as "
                "gate_proj and up_proj of one MLP, has a higher score: in trials on small models "
                "plans with one of the two in full were better. --gated-pairs both allows both."
            )
        full = sum(item.mode == "full" for item in solution.options)
        if full == 0 or (problem.budget.unit == "modules" and full < problem.limit):
            more = " More probe samples may show one." if score.reads_gradients else ""
            start = "No module is" if full == 0 else f"Only {full} of the modules that fit are"
            other = "no other module that may be chosen" if apart else "no other module"
            yield f"{start} trained in full: {other} has a positive {score.name}.{more}"
        known = any(share is not None for share in solution.probability)
        if not known and not score.reads_weights:
            yield (
                f"The stability of the choice is unknown: the report has no resamples of "
                f"'{score.name}' at rank {settings.rank}."
            )
    frozen = sorted(row.module for row, item in zip(problem.rows, solution.options, strict=True)
                    if item.mode == "frozen" and row.module in problem.tied)  # fmt: skip
    if frozen:
        yield f"{', '.join(frozen)} stays frozen: LoRA on a tied weight merges wrongly."


def _ranks_notes(problem: Problem, solution: Solution) -> Iterator[str]:
    settings, score = problem.settings, problem.score
    silent = sum(
        item.mode == "frozen"
        and not stays_frozen(row, problem.tied)
        and row.module not in problem.locks
        for row, item in zip(problem.rows, solution.options, strict=True)
    )
    if silent:
        start = f"{silent:,} of {len(problem.rows):,} modules stay frozen"
        yield (
            f"{start}: {score.name} shows too little to gain there, or nothing above the noise. "
            "More probe samples may show some; --score tail, which counts noise too, leaves fewer "
            "out."
            if score.reads_gradients
            else f"{start}."
        )
    yield from _largest_rank_notes(
        [item.rank for item in solution.options if item.mode == "lora"], settings.ranks
    )
    yield (
        "Ranks are chosen by the energy of the gradient or update that they capture, to the "
        f"power {settings.value_power:g}. In trials on small models such plans were as good as "
        "one rank for all of equal cost on average, with hls often better, not always: compare "
        "with --baseline lora-matched, or try it out with `hlscore validate`."
    )


def _largest_rank_notes(ranks: Sequence[int], allowed: Sequence[int]) -> Iterator[str]:
    """That most adapters have the largest rank to choose from, where they do."""
    largest = max(allowed)
    number = sum(rank == largest for rank in ranks)
    if 2 * number > len(ranks):
        yield (
            f"{number:,} of {len(ranks):,} adapters have the largest rank of --ranks ({largest}); "
            f"in all {rank_counts(ranks)}. Add larger ranks, or lower the budget."
        )
