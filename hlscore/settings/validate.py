"""How a plan is tried out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from hlscore.settings.data import NO_DATA, DataSettings
from hlscore.settings.model import ModelSettings
from hlscore.settings.objective import OBJECTIVE_PANEL
from hlscore.settings.option import check, option, require

VALIDATION_PANEL = "Validation"
# Trainings run on one device, on weights that are neither quantized nor spread.
NOT_VALIDATED = (
    "load_in", "device_map", "max_memory", "offload_folder", "shard", "text_only", "ignore_adapter",
)  # fmt: skip
DEFAULT_STEPS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateSettings:
    """How the short trainings of `hlscore validate` run."""

    panel: ClassVar = VALIDATION_PANEL
    model: ModelSettings
    steps: int = option(DEFAULT_STEPS, "Optimizer steps of each training.", low=2, high=10**6)
    # Each has its own examples, adapters and random draw.
    seeds: int = option(3, "Trainings of each arm that are reported.", low=2, high=1000)
    batch_size: int = option(8, "Sequences per step.", low=1, high=2**16)
    held_out: float = option(
        0.3,
        "Share of the examples that is not trained on; half of it chooses the rates.",
        above=0,
        below=1,
        hint="Use a share such as 0.3.",
    )
    full: bool = option(True, "Train in full too: without it no gap is known.")
    also: str | None = option(
        None, "Other data, in the same columns: report the loss there before and after."
    )
    data: DataSettings = field(default_factory=DataSettings)
    assistant_only_loss: bool = option(
        False,
        "Of conversations, count only the assistant's tokens (TRL's option).",
        OBJECTIVE_PANEL,
    )
    seed: int = option(0, "Seed of every draw.")

    def __post_init__(self) -> None:
        """Check every field, and the data."""
        check(self)
        require(
            not self.data.without_probes,
            "--data none has nothing to train on.",
            "Give examples, or remove it for the built-in ones.",
        )
        require(
            self.also is None or (self.also not in ("", NO_DATA) and self.also != self.data.data),
            f"--also is '{self.also}', and forgetting is measured on other data.",
            "Give examples of what the model should still do.",
        )
