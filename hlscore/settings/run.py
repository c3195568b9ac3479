"""Everything that decides the outcome of a run of `hlscore rank` or `hlscore validate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from hlscore.errors import UsageError
from hlscore.settings.capture import OF_GRADIENTS, CaptureSettings, default_sketch_size
from hlscore.settings.data import DEFAULT_SAMPLES, NO_DATA, CandidateSettings, DataSettings
from hlscore.settings.model import ModelSettings
from hlscore.settings.objective import DEFAULT_PROMPTS, OF_SAMPLING, ObjectiveSettings
from hlscore.settings.option import build, changed, check, flag_of, option, refuse_both, require
from hlscore.settings.plan import PlanSettings

# Trainings of a validation run on one device, on weights that are neither quantized nor spread.
NOT_VALIDATED = (
    "load_in", "device_map", "max_memory", "offload_folder", "shard", "text_only", "ignore_adapter",
)  # fmt: skip
# Options that also count where weights are read from files.
_READING = (
    "model", "revision", "device", "allow_pickle", "trust_remote_code", "text_only",
    "ignore_adapter",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """Everything that decides the outcome of `hlscore rank`."""

    panel: ClassVar = CaptureSettings.panel
    plan: PlanSettings = field(default_factory=PlanSettings)
    data: DataSettings = field(default_factory=DataSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    model: ModelSettings
    candidates: CandidateSettings = field(default_factory=CandidateSettings)
    capture: CaptureSettings = field(default_factory=CaptureSettings)
    updates: tuple[str, ...] = option(
        (),
        "Score a finished training instead of probes: a fine-tuned model or PEFT adapter, "
        "read beside MODEL. Repeat for further runs.",
        name="update",
        metavar="CHECKPOINT",
    )
    # Without probes, and where such a score decides, that is done anyway.
    weight_scores: bool = option(
        False,
        "Decompose the weights beside the probes: adds snr, spectral, kappa.",
        PlanSettings.panel,
    )
    # Sampling, halves, sketches, resamples and the `random` score.
    seed: int = option(0, "Seed of every draw.", low=0, high=2**63 - 1, hint="Use 0 to 2**63 - 1.")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RankSettings:
        """Settings from what was given by name; defaults that depend on it are filled in."""
        filled = dict(values)
        if "samples" not in filled:
            samples = DEFAULT_SAMPLES
            if filled.get("objective") == "grpo":
                # A file of rollouts is read as a whole.
                samples = DEFAULT_PROMPTS if filled.get("rollouts") is None else 0
            filled["samples"] = samples
        if "score" not in filled:
            filled["score"] = "snr" if filled.get("data") == NO_DATA else "hls"
        of_trials = [name for name in values if name.startswith("trial")]
        of_gradients = [name for name in OF_GRADIENTS if name in values]
        moved = values.get("movement", "auto")
        if moved == "auto":
            usual = "trial" if of_trials else "gradient" if of_gradients else "auto"
            moved = "update" if values.get("updates") else usual
        filled["movement"] = moved
        for name in {"trial": of_gradients, "gradient": of_trials}.get(moved, [])[:1]:
            asked = f"--movement {moved}"
            if "movement" not in values:
                asked = flag_of(CaptureSettings, of_trials[0])
            refuse_both(flag_of(CaptureSettings, name), asked, True)
        return build(cls, filled)

    def sampling(self) -> dict[str, object]:
        """What decides which completions are sampled and how they are judged, as plain data."""
        probed, names = asdict(self.objective), (*OF_SAMPLING, "temperature", "max_new_tokens")
        return {
            "model": asdict(self.model),
            "objective": {name: probed[name] for name in names if name != "reward_timeout"},
            "seed": self.seed,
        }

    def __post_init__(self) -> None:
        """Check the seed, and what belongs together."""
        check(self)
        size, rank = self.capture.sketch_size, max(self.plan.rank, *self.plan.ranks, 1)
        require(
            size is None or size >= 2 * rank,
            f"--sketch-size is {size}, too few columns for rank {rank}.",
            f"Use {2 * rank} or more; the default is {default_sketch_size(rank)}.",
        )
        probed = self.objective
        require(
            probed.objective != "grpo" or probed.rollouts is not None or bool(probed.rewards),
            "--objective grpo needs completions with rewards.",
            "Give --rollouts FILE, or --reward math (numeric, exact, regex, json, or "
            "package.module:function) to sample and judge them now.",
        )
        require(
            not (self.model.shard and probed.samples_rollouts),
            "--shard spreads the weights: no completions can be sampled from it.",
            "Sample them with a serving engine, and give --rollouts FILE.",
        )
        both = self.data.data is not None and probed.rollouts is not None
        refuse_both("--data", "--rollouts", both)
        require(
            self.data.samples != 1 or probed.objective == "grpo",
            "--samples is 1, but scores compare examples.",
            "Use 2 or more, or 0 for all.",
        )
        moved = self.capture.movement
        require(
            moved == "update" or not self.updates,
            f"--movement is {moved}, but --update is given.",
            "Remove --movement.",
        )
        require(
            moved != "update" or bool(self.updates),
            "--movement update needs a finished training.",
            "Give --update CHECKPOINT.",
        )
        require(
            len(set(self.updates)) == len(self.updates),
            "--update names a training twice: its noise would count as signal.",
            "Name each one once.",
        )
        require(
            all(name.strip() for name in self.updates),
            "--update is empty.",
            "Give the path or hub id of a finished training.",
        )
        refuse_both("--data none", "--update", bool(self.updates) and self.data.without_probes)
        if self.no_probes:
            # Options of probes, and of loading a model. The objective comes first: it decides what
            # is drawn by default. The movement comes last: options of trials decide it.
            beside = ("svd", "bootstrap", "movement") if self.updates else ("data",)
            for part in (self.objective, self.data, self.capture, self.model):
                names = changed(part, *beside, *(_READING if part is self.model else ()))
                for name in sorted(names, key=lambda name: name == "movement"):
                    raise UsageError(
                        f"{flag_of(type(part), name)} is for probes, and {self.no_probes} has "
                        "none: weights are read from the files, as they are stored.",
                        hint="Remove one of them.",
                    )

    @property
    def no_probes(self) -> str:
        """The option for which nothing is probed; empty where something is."""
        if self.updates:
            return "--update"
        return "--data none" if self.data.without_probes else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateSettings:
    """How the short trainings of `hlscore validate` run."""

    panel: ClassVar = "Validation"
    model: ModelSettings
    steps: int = option(60, "Optimizer steps of each training.", low=2, high=10**6)
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
        ObjectiveSettings.panel,
    )
    # Those of several runs follow each other, and NumPy takes 32 bits.
    seed: int = option(0, "Seed of every draw.", low=0, high=2**31 - 1)

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
