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


def without_lesser(
    rows: Sequence[Matrix],
    values: Numbers,
    full: Collection[str],
    asked: GatedPairs,
    score: Score,
    *,
    of_updates: bool,
) -> Numbers:
    """Values of which those of the lesser module of each gated pair are unknown.

    That is the one with the lower value, of equal ones the later one; of a pair with a module that
    is trained in full anyway, the other one. Expert stacks are no pair: those of one module are
    chosen together. By default both may be chosen where plans did not gain by the rule.

    Args:
        values: Of each row, float64 [rows, sets of values]; each set has lesser ones of its own.
        full: Names of modules that are locked to full.
        of_updates: Whether the scores are those of weight updates.

    Returns:
        A copy with NaN for what may not be chosen.
    """
    kept = values.copy()
    gains = score.one_of_pair or (of_updates and score.reads_gradients)
    if asked == "both" or (asked == "auto" and not gains):
        return kept
    known = np.where(np.isnan(values), -np.inf, values)
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
