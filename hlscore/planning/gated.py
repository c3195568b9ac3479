"""Gated pairs: two matrices of one MLP whose outputs are multiplied, such as gate_proj and up_proj.

Scores add up, gains of such a pair do not: what one of the two learns in full, the other need not.
In trials on small models plans with at most one of the two in full recovered more of the gap
between LoRA and full fine-tuning (benchmarks/evidence).
"""

from __future__ import annotations

import numpy as np

from hlscore.planning.knapsack import Numbers
from hlscore.planning.problem import Problem
from hlscore.scores.registry import Score
from hlscore.settings.plan import GatedPairs

# As the models of transformers name them: x = down(act(first(x)) * second(x)).
KINDS = (("gate_proj", "up_proj"), ("w1", "w3"), ("wi_0", "wi_1"))


def one_of_each(asked: GatedPairs, score: Score, *, of_updates: bool) -> bool:
    """Whether only one of a gated pair may be chosen; by default where plans gained by it."""
    gains = score.one_of_pair or (of_updates and score.reads_gradients)
    return asked == "one" or (asked == "auto" and gains)


def partner_of(module: str) -> str | None:
    """Name of the other module of a gated pair; `None` for a kind that has no partner."""
    parent, _, kind = module.rpartition(".")
    pair = next((pair for pair in KINDS if kind in pair), None)
    return None if pair is None else f"{parent}.{pair[1 - pair.index(kind)]}"


def without_lesser(problem: Problem, values: Numbers) -> Numbers:
    """Values of which those of the lesser module of each gated pair are unknown.

    Of a pair with a module that is locked to full the other one is the lesser. Expert stacks are
    no pair: those of one module are chosen together.

    Args:
        values: Values of each row, float64 [rows, sets of values]; each set has lesser ones of
            its own.

    Returns:
        A copy with NaN for what may not be chosen; unchanged where both may be.
    """
    kept, rows = values.copy(), problem.rows
    of_updates = problem.report.run.scores_updates
    if not one_of_each(problem.settings.gated_pairs, problem.score, of_updates=of_updates):
        return kept
    places = {row.module: place for place, row in enumerate(rows) if row.form != "experts"}
    for module, first in places.items():
        second = places.get(partner_of(module) or "", -1)
        if second < first:
            continue
        pair = np.array([first, second])
        locks = (problem.locks.get(rows[place].module) for place in pair)
        full = np.array([lock is not None and lock.mode == "full" for lock in locks])
        scores = np.where(np.isnan(values[pair]), -np.inf, values[pair])
        lesser = np.stack([scores[0] < scores[1], scores[0] >= scores[1]])
        kept[pair] = np.where(~full[:, None] if full.any() else lesser, np.nan, values[pair])
    return kept
