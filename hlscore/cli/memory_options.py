"""Options that say how a training will be run, as far as its memory depends on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

if TYPE_CHECKING:
    from hlscore.settings import BaseBits, MemorySettings

MEMORY_PANEL = "Training memory"

Optimizer = Annotated[
    Literal["adamw", "adamw8bit", "adafactor", "lion", "lion8bit", "sgd", "sgd-momentum"],
    typer.Option("--optimizer", help="Optimizer of the training.", rich_help_panel=MEMORY_PANEL),
]
Master = Annotated[
    Literal["fp32", "bf16"],
    typer.Option(
        "--master",
        help="Precision of what is trained, its gradients and moments.",
        rich_help_panel=MEMORY_PANEL,
    ),
]
Base = Annotated[
    Literal["16", "8", "4"],
    typer.Option("--base", help="Bits of each frozen linear weight.", rich_help_panel=MEMORY_PANEL),
]
TrainBatch = Annotated[
    int,
    typer.Option(
        "--train-batch", help="Sequences per step and device.", rich_help_panel=MEMORY_PANEL
    ),
]
TrainLength = Annotated[
    int,
    typer.Option("--train-length", help="Tokens per sequence.", rich_help_panel=MEMORY_PANEL),
]


def memory_settings(
    optimizer: Literal[
        "adamw", "adamw8bit", "adafactor", "lion", "lion8bit", "sgd", "sgd-momentum"
    ],
    master: Literal["fp32", "bf16"],
    base: Literal["16", "8", "4"],
    train_batch: int,
    train_length: int,
) -> MemorySettings:
    """Turn the options of the panel into settings.

    Args:
        optimizer: `--optimizer`.
        master: `--master`.
        base: `--base`, in text because a choice on the command line is text.
        train_batch: `--train-batch`.
        train_length: `--train-length`.

    Returns:
        The settings.

    Raises:
        UsageError: Batch or length is less than 1.
    """
    from hlscore.settings import MemorySettings

    return MemorySettings(
        optimizer=optimizer,
        master=master,
        base_bits=cast("BaseBits", int(base)),
        train_batch=train_batch,
        train_length=train_length,
    )
