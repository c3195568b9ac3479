"""The `random` control: a seeded draw that spreads over kinds and sizes."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from hlscore.records import Matrix


def stratified_scores(candidates: Sequence[Matrix], *, seed: int) -> dict[str, float]:
    """Draw a control score per module.

    Modules of one kind and size form a stratum. Within it they get evenly spaced scores in
    random order with a random offset, so that the best k of all modules hold about the same
    share of every stratum.

    Returns:
        A number in (0, 1] per module name, without ties in practice.
    """
    strata: dict[tuple[str, str, int], list[str]] = defaultdict(list)
    for item in candidates:
        strata[item.block, item.kind, item.n_params].append(item.module)
    scores = {}
    for key, modules in sorted(strata.items()):
        generator = random.Random(f"{seed}:{key}")
        order = sorted(modules)
        generator.shuffle(order)
        for place, module in enumerate(order):
            scores[module] = 1 - (place + generator.random()) / len(order)
    return scores
