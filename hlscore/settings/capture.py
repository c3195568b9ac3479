"""How gradients are captured and reduced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from hlscore.settings.checking import changed, require, require_choice

PaddingSide = Literal["right", "left"]
SvdMethod = Literal["auto", "full", "randomized"]
Estimator = Literal["auto", "exact", "sketch"]
Accumulator = Literal["device", "host"]
Movement = Literal["auto", "gradient", "trial", "update"]
TrialOptimizer = Literal["factored", "sign", "rms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSettings:
    """How gradients are captured and reduced.

    Attributes:
        batch_size: Examples per forward and backward pass; changes speed, not scores.
        padding_side: Side on which shorter examples of a batch are padded.
        checkpointing: Recompute activations in the backward pass where the model supports it.
        estimator: `exact` sums float32 gradients, `sketch` random projections of them; `auto` is
            exact while that fits the memory.
        sketch_size: Columns of a sketch; `None` means four times the LoRA rank, at least 64.
        passes: Passes over the probes, an odd number; every two after the first are a power
            iteration, which finds the leading directions of each gradient themselves.
        accumulate_on: Where the sums of the exact estimator are kept.
        groups: Most probe groups per half, from which standard errors are estimated; fewer, down
            to 4, where there are too few examples to fill a batch of each.
        bootstrap: Resamples of the groups; 0 turns standard errors off.
        svd: `full` decomposes every gradient exactly, `randomized` finds the head by subspace
            iteration, `auto` is full up to a short side of 512.
        movement: What is scored: `gradient`, the mean gradient at the base weights; `trial`, the
            weight updates of short trainings; `update`, those of finished ones; `auto` chooses.
        trials: Short trainings, an even number; each sees its own part of the probes.
        trial_steps: Optimizer steps of each trial.
        trial_rate: Learning rate of the trials, the root mean square of one step's change;
            `None` finds one.
        trial_optimizer: `factored` (Adafactor without momentum), `sign` or `rms`.
    """

    batch_size: int = 8
    padding_side: PaddingSide = "right"
    checkpointing: bool = True
    estimator: Estimator = "auto"
    sketch_size: int | None = None
    passes: int = 1
    accumulate_on: Accumulator = "device"
    groups: int = 8
    bootstrap: int = 200
    svd: SvdMethod = "auto"
    movement: Movement = "auto"
    trials: int = 4
    trial_steps: int = 8
    trial_rate: float | None = None
    trial_optimizer: TrialOptimizer = "factored"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field has a value that cannot be used.
        """
        require(self.batch_size >= 1, f"--batch-size is {self.batch_size}.", "Use 1 or more.")
        require(self.groups >= 1, f"--groups is {self.groups}.", "Use 1 or more.")
        require(
            self.bootstrap == 0 or 2 <= self.bootstrap <= 10_000,
            f"--bootstrap is {self.bootstrap}.",
            "Use 0 (off), or 2 to 10000: a standard error needs several resamples.",
        )
        require_choice("--estimator", self.estimator, get_args(Estimator))
        require(
            self.sketch_size is None or 2 <= self.sketch_size <= 2**16,
            f"--sketch-size is {self.sketch_size}.",
            "Use 2 to 65536.",
        )
        require(
            1 <= self.passes <= 21 and self.passes % 2 == 1,
            f"--passes is {self.passes}.",
            "Use 1, 3, 5, ...: each power iteration runs over the probes twice.",
        )
        require(
            self.passes == 1 or self.estimator != "exact",
            f"--passes is {self.passes}, but the exact estimator needs one.",
            "Leave it out, or use --estimator sketch.",
        )
        require_choice("--accumulate-on", self.accumulate_on, get_args(Accumulator))
        require(
            self.accumulate_on == "device" or self.estimator != "sketch",
            "--accumulate-on host is for the exact estimator; sketches are small.",
            "Leave it out, or use --estimator exact.",
        )
        require_choice("padding side", self.padding_side, get_args(PaddingSide))
        require_choice("--svd", self.svd, get_args(SvdMethod))
        require_choice("--movement", self.movement, get_args(Movement))
        require_choice("--trial-optimizer", self.trial_optimizer, get_args(TrialOptimizer))
        require(
            2 <= self.trials <= 256 and self.trials % 2 == 0,
            f"--trials is {self.trials}.",
            "Use an even number from 2 to 256: two halves are compared.",
        )
        require(
            1 <= self.trial_steps <= 10_000,
            f"--trial-steps is {self.trial_steps}.",
            "Use 1 to 10000.",
        )
        require(
            self.trial_rate is None or 0 < self.trial_rate <= 1,
            f"--trial-rate is {self.trial_rate}.",
            "Use a number above 0 and at most 1, such as 1e-4.",
        )
        given = [name for name in changed(self) if name.startswith("trial")]
        # Beside finished trainings every option of probes is refused by the settings of the run.
        require(
            self.movement in ("trial", "update") or not given,
            f"--{given[0].replace('_', '-') if given else ''} is for trials, and none are run.",
            "Add --movement trial, or remove it.",
        )
        require(
            self.movement != "trial" or self.passes == 1,
            f"--passes is {self.passes}, but a trial's update is seen once.",
            "Leave --passes out, or use --movement gradient.",
        )
