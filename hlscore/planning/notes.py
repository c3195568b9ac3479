"""What a reader of a plan should know beside its figures, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from hlscore.artifacts.plan import PlanCoverage
from hlscore.planning.problem import Problem, Solution
from hlscore.wording import count, first_of

# Below it nothing is left that one would train for.
NOTHING_LEFT = 5e-4
_SHOWN = 3


def plan_notes(
    problem: Problem, solution: Solution, covered: PlanCoverage | None, *, spent: int
) -> Iterator[str]:
    """All notes on a plan; `spent` is what it takes of its budget, in the budget's unit."""
    report, settings, rows = problem.report, problem.settings, problem.rows
    left = 1.0 if covered is None else 1 - covered.lora
    # A rank that spans every matrix leaves nothing over of any gradient.
    measured = any(settings.rank < row.max_rank for row in rows)
    if covered is not None and left < NOTHING_LEFT and measured:
        share = f"{100 * left:.1g} %" if left > 1e-9 else "nothing"
        yield (
            f"LoRA of rank {settings.rank} leaves {share} of this {covered.of} over: full "
            "fine-tuning has next to nothing to add. Compare with a lower --rank, or train LoRA "
            "alone."
        )
    full = sum(item.mode == "full" for item in solution.choices)
    if report.probes.objective == "grpo" and full and settings.baseline is None:
        yield (
            "In trials with rewards (GRPO) on small models LoRA did not lag behind full "
            "fine-tuning: compare with --baseline lora-matched before you train this plan."
        )
    names = sorted(row.module for row in rows if row.unreached and row.module not in problem.locks)
    if names:
        of_update = report.run.movement == "update"
        what = "No training changed" if of_update else "No probe gradient reaches"
        yield (
            f"{what} {first_of(names, _SHOWN)}: such modules stay frozen unless --lock "
            "says otherwise."
        )
    large = [
        item
        for item in solution.choices
        if item.mode == "lora" and item.trained_params >= item.row.n_params
    ]
    if large:
        yield (
            f"LoRA trains {sum(item.trained_params for item in large):,} parameters in "
            f"{len(large):,} of {len(rows):,} modules whose weights are "
            f"{sum(item.row.n_params for item in large):,}: use a smaller --rank."
        )
    if settings.baseline is not None:
        yield f"A baseline ({settings.baseline}), not the choice of a score."
        if spent > problem.limit:
            yield f"It takes more than the budget of {problem.budget.text} allows."
        return
    if len(problem.locks) == len(rows):
        yield "Every module is locked: nothing was chosen."
        return
    missing = int(np.isnan(problem.values).sum())
    if missing:
        yield (
            f"{missing:,} of {len(rows):,} modules have no '{problem.score.name}' and come last; "
            "the reasons are in the report."
        )
    yield from (_ranks_notes if settings.ranks else _uniform_notes)(problem, solution)
    frozen = sorted(
        item.row.module
        for item in solution.choices
        if item.mode == "frozen" and item.row.module in problem.tied
    )
    if frozen:
        yield f"{', '.join(frozen)} stays frozen: LoRA on a tied weight merges wrongly."


def _uniform_notes(problem: Problem, solution: Solution) -> Iterator[str]:
    """On a choice under one rank for all."""
    score, values = problem.score, problem.values
    free = np.array([row.module not in problem.locks for row in problem.rows])
    in_full = np.array([item.mode == "full" for item in solution.choices])
    # Scores of those that may not be chosen because the other of their pair may.
    apart = np.array([values[place] for place in solution.lesser if free[place]])
    apart = apart[apart > 0]
    full = int(in_full.sum())
    room_left = problem.budget.unit == "modules" and full < problem.limit
    # Where the budget is used up, those below the modules in full would have LoRA anyway.
    last = 0.0 if room_left else min(np.nan_to_num(values[free & in_full]), default=0.0)
    hindered = int((apart > last).sum())
    if hindered:
        yield (
            f"{count(hindered, 'module')} scored high enough for full and kept LoRA: the "
            "other of the gated pair, such as gate_proj and up_proj of one MLP, scored higher."
        )
    if full == 0 and all(problem.settings.rank >= row.max_rank for row in problem.rows):
        yield (
            f"No module is trained in full: LoRA of rank {problem.settings.rank} spans every "
            "matrix, so that nothing is left over."
        )
    elif full == 0 or room_left:
        more = " More probe samples may show one." if score.reads_gradients else ""
        start = "No module is" if full == 0 else f"Only {full} of the modules that fit are"
        other = "no other module that may be chosen" if len(apart) else "no other module"
        yield f"{start} trained in full: {other} has a positive {score.name}.{more}"
    known = any(share is not None for share in solution.probability)
    if not known and not score.reads_weights:
        yield (
            f"The stability of the choice is unknown: the report has no resamples of "
            f"'{score.name}' at rank {problem.settings.rank}."
        )


def _ranks_notes(problem: Problem, solution: Solution) -> Iterator[str]:
    """On a choice of a rank for each module."""
    settings, score = problem.settings, problem.score
    if problem.report.run.movement == "trial" and score.reads_gradients:
        yield (
            "On small models ranks chosen by trials did no better than one rank of equal cost; "
            "those by gradients did: hlscore rank with --ranks measures them."
        )
    bound = {*problem.tied, *problem.locks}
    silent = sum(
        item.mode == "frozen" and not row.unreached and row.module not in bound
        for row, item in zip(problem.rows, solution.choices, strict=True)
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
    ranks = [item.rank for item in solution.choices if item.mode == "lora"]
    largest = max(settings.ranks)
    if 2 * ranks.count(largest) > len(ranks):
        yield (
            f"{ranks.count(largest):,} of {len(ranks):,} adapters have the largest rank of --ranks "
            f"({largest}); in all {rank_counts(ranks)}. Add larger ranks, or lower the budget."
        )
    yield (
        "Ranks are chosen by the energy of the gradient or update that they capture, to the "
        f"power {settings.value_power:g}. In trials on small models such plans were as good as "
        "one rank for all of equal cost on average, with hls often better, not always: compare "
        "with --baseline lora-matched, or try it out with `hlscore validate`."
    )


def rank_counts(ranks: Iterable[int]) -> str:
    """How many modules have each rank: `12 of rank 4, 30 of rank 8, 150 of rank 64`."""
    found = sorted(Counter(ranks).items())
    return ", ".join(f"{number:,} of rank {rank}" for rank, number in found)
