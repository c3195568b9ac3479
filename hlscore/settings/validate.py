"""How a plan is tried out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from hlscore.settings.data import NO_DATA, DataSettings
from hlscore.settings.model import ModelSettings
from hlscore.settings.objective import OBJECTIVE_PANEL
from hlscore.settings.option import Option, check, require

TRIAL_PANEL = "Trial"
# Trainings run on one device, on weights that are neither quantized nor spread.
NOT_VALIDATED = (
    "load_in", "device_map", "max_memory", "offload_folder", "shard", "text_only", "ignore_adapter",
)  # fmt: skip
FACTORS = (1 / 3, 1.0, 3.0)
DEFAULT_STEPS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateSettings:
    """How the short trainings of `hlscore validate` run."""

    model: ModelSettings
    steps: Annotated[
        int, Option("Optimizer steps of each training.", TRIAL_PANEL, low=2, high=10**6)
    ] = DEFAULT_STEPS
    # Each has its own examples, adapters and random draw.
    seeds: Annotated[
        int, Option("Trainings of each arm that are reported.", TRIAL_PANEL, low=2, high=1000)
    ] = 3
    batch_size: Annotated[int, Option("Sequences per step.", TRIAL_PANEL, low=1, high=2**16)] = 8
    held_out: Annotated[
        float,
        Option(
            "Share of the examples that is not trained on; half of it chooses the rates.",
            TRIAL_PANEL,
            above=0,
            below=1,
            hint="Use a share such as 0.3.",
        ),
    ] = 0.3
    full: Annotated[bool, Option("Train in full too: without it no gap is known.", TRIAL_PANEL)] = (
        True
    )
    also: Annotated[
        str | None,
        Option(
            "Other data, in the same columns: report the loss there before and after.", TRIAL_PANEL
        ),
    ] = None
    data: DataSettings = field(default_factory=DataSettings)
    assistant_only_loss: Annotated[
        bool,
        Option(
            "Of conversations, count only the assistant's tokens (TRL's option).", OBJECTIVE_PANEL
        ),
    ] = False
    seed: Annotated[int, Option("Seed of every draw.", TRIAL_PANEL)] = 0

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
