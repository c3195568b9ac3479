"""How gradients and weight updates are captured and reduced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from hlscore.settings.option import changed, check, flag_of, option, require, settings_in

SvdMethod = Literal["auto", "full", "randomized"]
Estimator = Literal["auto", "exact", "sketch"]
Accumulator = Literal["device", "host"]
DEFAULT_TRIAL_STEPS = 64
# Options that probing for gradients has and trials have not.
OF_GRADIENTS = ("groups",)
Movement = Literal["auto", "gradient", "trial", "update"]
TrialOptimizer = Literal["factored", "sign", "rms"]


def default_sketch_size(rank: int) -> int:
    """Columns that a sketch needs for tails at a LoRA rank."""
    return max(128, 8 * rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSettings:
    """How gradients and weight updates are captured and reduced."""

    panel: ClassVar = "Capture"
    batch_size: int = option(8, "Examples per pass; changes speed, not scores.", low=1)
    checkpointing: bool = option(
        True, "Recompute activations in the backward pass: less memory, more time."
    )
    estimator: Estimator = option(
        "auto",
        "exact: float32 sums of every gradient. sketch: random projections, in little "
        "more memory than inference. auto: exact while it fits.",
    )
    sketch_size: int | None = option(
        None,
        "Columns of a sketch: more are more exact. Standard errors of exact sums use them too.",
        default="8 x rank, at least 128; half beside exact sums",
        low=2,
        high=2**16,
    )
    accumulate_on: Accumulator = option(
        "device", "Where the sums of the exact estimator are kept: the model's device, or the host."
    )
    movement: Movement = option(
        "auto",
        "What is scored: first gradients, or weight updates of trials or of --update. auto: trials "
        "for sft where weights can be moved and there are 32 examples, but gradients with --ranks "
        "or --groups.",
    )
    trials: int = option(
        4,
        "Trial trainings, an even number; each has its own probes.",
        low=2,
        high=256,
        step=2,
        hint="Use an even number from 2 to 256: two halves are compared.",
    )
    trial_steps: int | None = option(
        None,
        "Optimizer steps of each trial, at most as many as it has examples.",
        default=f"{DEFAULT_TRIAL_STEPS}, or as many as have two examples each",
        low=1,
        high=10_000,
    )
    trial_rate: float | None = option(
        None,
        "Learning rate of the trials: root mean square of one step's change.",
        default="found by a few steps at several rates",
        above=0,
        high=1,
        hint="Use a number above 0 and at most 1, such as 1e-4.",
    )
    trial_optimizer: TrialOptimizer = option(
        "factored", "Optimizer of the trials: Adafactor without momentum, sign, or unit RMS."
    )
    svd: SvdMethod = option(
        "auto", "How gradients are decomposed; auto is full up to a short side of 512."
    )
    # Fewer, down to 4, where there are too few examples to fill a batch of each.
    groups: int = option(8, "Probe groups per half, used to estimate standard errors.", low=1)
    bootstrap: int = option(
        200,
        "Resamples of the groups; 0 turns standard errors off.",
        low=0,
        high=10_000,
        hint="Use 0 (off), or 2 to 10000: a standard error needs several resamples.",
    )

    def sums_on_host(self, device: str) -> bool:
        """Whether exact sums leave the device of the model; on a CPU they cannot."""
        return self.accumulate_on == "host" and device != "cpu"

    def steps_of(self, examples: int) -> int:
        """Optimizer steps of a trial with so many examples, each of which is seen once."""
        by_default = min(DEFAULT_TRIAL_STEPS, max(2, examples // 2))
        return min(self.trial_steps or by_default, examples)

    def __post_init__(self) -> None:
        """Check every field, and those that belong together."""
        check(self)
        require(
            self.bootstrap != 1,
            "--bootstrap is 1.",
            settings_in(CaptureSettings)["bootstrap"].option.hint,
        )
        require(
            self.accumulate_on == "device" or self.estimator != "sketch",
            "--accumulate-on host is for the exact estimator; sketches are small.",
            "Remove it, or use --estimator exact.",
        )
        given = [name for name in changed(self) if name.startswith("trial")]
        flag = flag_of(CaptureSettings, given[0]) if given else ""
        # Beside finished trainings every option of probes is refused by the settings of the run.
        require(
            self.movement in ("trial", "update") or not given,
            f"{flag} is for trials, and none are run.",
            "Remove it, or --movement gradient.",
        )
