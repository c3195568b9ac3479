"""How gradients and weight updates are captured and reduced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from hlscore.settings.option import Option, changed, check, flag_of, require

PaddingSide = Literal["right", "left"]
SvdMethod = Literal["auto", "full", "randomized"]
Estimator = Literal["auto", "exact", "sketch"]
Accumulator = Literal["device", "host"]
Movement = Literal["auto", "gradient", "trial", "update"]
TrialOptimizer = Literal["factored", "sign", "rms"]

CAPTURE_PANEL = "Capture"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSettings:
    """How gradients and weight updates are captured and reduced."""

    batch_size: Annotated[
        int,
        Option("Examples per pass; changes speed, not scores.", CAPTURE_PANEL, low=1),
    ] = 8
    # Side on which shorter examples of a batch are padded; for tests.
    padding_side: PaddingSide = "right"
    checkpointing: Annotated[
        bool,
        Option(
            "Recompute activations in the backward pass: less memory, more time.",
            CAPTURE_PANEL,
        ),
    ] = True
    estimator: Annotated[
        Estimator,
        Option(
            "exact: float32 sums of every gradient. sketch: random projections, in little "
            "more memory than inference. auto: exact while it fits.",
            CAPTURE_PANEL,
        ),
    ] = "auto"
    sketch_size: Annotated[
        int | None,
        Option(
            "Columns of a sketch: more are more exact. With exact: of the standard errors.",
            CAPTURE_PANEL,
            default="4 x rank, at least 64",
            low=2,
            high=2**16,
        ),
    ] = None
    passes: Annotated[
        int,
        Option(
            "Passes over the probes: 1, or 3 for a power iteration that sharpens sketches.",
            CAPTURE_PANEL,
            low=1,
            high=21,
            step=2,
            hint="Use 1, 3, 5, ...: each power iteration runs over the probes twice.",
        ),
    ] = 1
    accumulate_on: Annotated[
        Accumulator,
        Option("Where the sums of the exact estimator are kept.", CAPTURE_PANEL),
    ] = "device"
    movement: Annotated[
        Movement,
        Option(
            "What is scored: first gradients, or weight updates of trials or of --update.",
            CAPTURE_PANEL,
        ),
    ] = "auto"
    trials: Annotated[
        int,
        Option(
            "Trial trainings, an even number; each has its own probes.",
            CAPTURE_PANEL,
            low=2,
            high=256,
            step=2,
            hint="Use an even number from 2 to 256: two halves are compared.",
        ),
    ] = 4
    trial_steps: Annotated[
        int,
        Option("Optimizer steps of each trial.", CAPTURE_PANEL, low=1, high=10_000),
    ] = 8
    trial_rate: Annotated[
        float | None,
        Option(
            "Learning rate of the trials: root mean square of one step's change.",
            CAPTURE_PANEL,
            default="found by a few steps at several rates",
            above=0,
            high=1,
            hint="Use a number above 0 and at most 1, such as 1e-4.",
        ),
    ] = None
    trial_optimizer: Annotated[
        TrialOptimizer,
        Option(
            "Optimizer of the trials: Adafactor without momentum, sign, or unit RMS.",
            CAPTURE_PANEL,
        ),
    ] = "factored"
    svd: Annotated[
        SvdMethod,
        Option(
            "How gradients are decomposed; auto is full up to a short side of 512.",
            CAPTURE_PANEL,
        ),
    ] = "auto"
    # Fewer, down to 4, where there are too few examples to fill a batch of each.
    groups: Annotated[
        int,
        Option(
            "Probe groups per half, used to estimate standard errors.",
            CAPTURE_PANEL,
            low=1,
        ),
    ] = 8
    bootstrap: Annotated[
        int,
        Option(
            "Resamples of the groups; 0 turns standard errors off.",
            CAPTURE_PANEL,
            low=0,
            high=10_000,
            hint="Use 0 (off), or 2 to 10000: a standard error needs several resamples.",
        ),
    ] = 200

    def __post_init__(self) -> None:
        """Check every field, and those that belong together."""
        check(self)
        require(
            self.bootstrap != 1,
            "--bootstrap is 1.",
            "Use 0 (off), or 2 to 10000: a standard error needs several resamples.",
        )
        require(
            self.passes == 1 or self.estimator != "exact",
            f"--passes is {self.passes}, but the exact estimator needs one.",
            "Remove it, or use --estimator sketch.",
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
            "Add --movement trial, or remove it.",
        )
        require(
            self.movement != "trial" or self.passes == 1,
            f"--passes is {self.passes}, but a trial's update is seen once.",
            "Remove --passes, or use --movement gradient.",
        )
