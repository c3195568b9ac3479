"""What is trained on, what chooses the rates, and what is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hlscore.errors import DataError
from hlscore.probes.units import ProbeExample


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Examples in three parts that share none.

    Attributes:
        training: What is trained on.
        tuning: What chooses the learning rates.
        test: What is reported.
    """

    training: tuple[ProbeExample, ...]
    tuning: tuple[ProbeExample, ...]
    test: tuple[ProbeExample, ...]


def split_examples(examples: Sequence[ProbeExample], *, held_out: float, seed: int) -> Examples:
    """Split examples by their content, in whatever order they are listed.

    Equal examples come into the same part.

    Args:
        examples: All of them.
        held_out: Share that is not trained on.
        seed: Seed of the split.

    Returns:
        The parts.

    Raises:
        DataError: There are too few examples.
    """
    order = sorted({item.digest(seed): item for item in examples}.items())
    unique = [item for _, item in order]
    tested = round(held_out * len(unique) / 2)
    if tested < 2 or len(unique) - 2 * tested < 2:
        raise DataError(
            f"{len(unique)} different examples are too few to hold some out.",
            hint="Give at least ten, better some hundred.",
        )
    return Examples(
        training=tuple(unique[2 * tested :]),
        tuning=tuple(unique[:tested]),
        test=tuple(unique[tested : 2 * tested]),
    )


def training_order(
    examples: Sequence[ProbeExample], *, count: int, seed: int
) -> list[ProbeExample]:
    """Draw examples for a training, epoch after epoch; every arm of a seed gets the same.

    Args:
        examples: What is trained on.
        count: How many.
        seed: Seed of the order.

    Returns:
        The examples in order.
    """
    rng = np.random.default_rng(seed)
    epochs = -(-count // len(examples))
    places = np.concatenate([rng.permutation(len(examples)) for _ in range(epochs)])
    return [examples[place] for place in places[:count]]
