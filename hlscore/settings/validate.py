"""How a plan is tried out."""

from __future__ import annotations

from dataclasses import dataclass, field

from hlscore.settings.checking import require
from hlscore.settings.data import NO_DATA, DataSettings
from hlscore.settings.model import ModelSettings

FACTORS = (1 / 3, 1.0, 3.0)
DEFAULT_STEPS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateSettings:
    """How the short trainings of `hlscore validate` run.

    Attributes:
        model: Which model, and how it is loaded.
        data: What it is trained and tested on.
        assistant_only_loss: Whether only the assistant's tokens of a conversation carry loss.
        also: Other data, on which forgetting is measured; `None` measures none.
        steps: Optimizer steps of each training.
        batch_size: Sequences per step.
        seeds: Trainings of each arm that are reported; each has its own examples, adapters and
            random draw.
        held_out: Share of the examples that no training sees; half of them choose the learning
            rates, the other half is reported.
        full: Whether full fine-tuning is an arm; without it no gap can be told.
        seed: Seed of every draw.
    """

    model: ModelSettings
    data: DataSettings = field(default_factory=DataSettings)
    assistant_only_loss: bool = False
    also: str | None = None
    steps: int = DEFAULT_STEPS
    batch_size: int = 8
    seeds: int = 3
    held_out: float = 0.3
    full: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field has a value that cannot be used.
        """
        require(2 <= self.steps <= 10**6, f"--steps is {self.steps}.", "Use 2 or more.")
        require(
            1 <= self.batch_size <= 2**16, f"--batch-size is {self.batch_size}.", "Use 1 or more."
        )
        require(2 <= self.seeds <= 1000, f"--seeds is {self.seeds}.", "Use 2 or more.")
        require(
            0 < self.held_out < 1, f"--held-out is {self.held_out}.", "Use a share such as 0.3."
        )
        require(
            not self.data.without_probes,
            "--data none has nothing to train on.",
            "Give examples, or leave it out for the built-in ones.",
        )
        require(
            self.also is None or (self.also not in ("", NO_DATA) and self.also != self.data.data),
            f"--also is '{self.also}', and forgetting is measured on other data.",
            "Give examples of what the model should still do.",
        )
