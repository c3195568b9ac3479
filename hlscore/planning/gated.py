"""Gated pairs: two matrices of one MLP whose outputs are multiplied, such as gate_proj and up_proj.

Scores add up, gains of such a pair do not: what one of the two learns in full, the other need not.
In trials on small models plans with at most one of the two in full recovered more of the gap
between LoRA and full fine-tuning (benchmarks/evidence).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from hlscore.planning.knapsack import Numbers
from hlscore.records import Matrix
from hlscore.scores.registry import Score
from hlscore.settings.plan import GatedPairs

# As the models of transformers name them: x = down(act(first(x)) * second(x)).
KINDS = (("gate_proj", "up_proj"), ("w1", "w3"), ("wi_0", "wi_1"))


def one_of_each(asked: GatedPairs, score: Score, *, of_updates: bool) -> bool:
    """Whether only one of a gated pair may be chosen; by default where plans gained by it."""
    gains = score.one_of_pair or (of_updates and score.reads_gradients)
    return asked == "one" or (asked == "auto" and gains)


def lesser_of_pairs(rows: Sequence[Matrix], scores: Numbers, full: Collection[str]) -> Numbers:
    """Scores of which those of the lesser module of each gated pair are unknown.

    That is the one with the lower score, of equal ones the later one; of a pair with a module that
    is trained in full anyway, the other one. Expert stacks are no pair: those of one module are
    chosen together.

    Args:
        scores: Scores of each row, float64 [rows, sets of scores]; each set has lesser ones of its
            own.
        full: Names of modules that are locked to full.

    Returns:
        A copy with NaN for what may not be chosen.
    """
    kept = scores.copy()
    known = np.where(np.isnan(scores), -np.inf, scores)
    places = {row.module: place for place, row in enumerate(rows) if row.form != "experts"}
    for module, place in places.items():
        parent, _, kind = module.rpartition(".")
        partner = next((f"{parent}.{other}" for one, other in KINDS if one == kind), "")
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
