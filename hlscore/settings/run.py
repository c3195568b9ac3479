"""Everything that decides the outcome of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from hlscore.errors import UsageError
from hlscore.settings.capture import (
    CAPTURE_PANEL,
    OF_GRADIENTS,
    CaptureSettings,
    default_sketch_size,
)
from hlscore.settings.data import DEFAULT_SAMPLES, NO_DATA, CandidateSettings, DataSettings
from hlscore.settings.model import ModelSettings
from hlscore.settings.objective import DEFAULT_PROMPTS, ObjectiveSettings
from hlscore.settings.option import build, changed, check, flag_of, option, refuse_both, require
from hlscore.settings.plan import PLAN_PANEL, PlanSettings

# Options that decide which completions are sampled and how they are judged.
_SAMPLING = (
    "rewards", "reward_weights", "generations", "temperature", "top_p", "top_k", "max_new_tokens",
    "stop", "generate_batch",
)  # fmt: skip
# Options that also count where weights are read from files.
_READING = (
    "model", "revision", "device", "allow_pickle", "trust_remote_code", "text_only",
    "ignore_adapter",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """Everything that decides the outcome of `hlscore rank`."""

    panel: ClassVar = CAPTURE_PANEL
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
        False, "Decompose the weights beside the probes: adds snr, spectral, kappa.", PLAN_PANEL
    )
    # Sampling, halves, sketches, resamples and the `random` score.
    seed: int = option(0, "Seed of every draw.", low=0, hint="Use 0 to 2**63 - 1.")

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
        moved = filled.get("movement", "auto")
        if moved == "auto" and filled.get("updates"):
            moved = "update"
        elif moved == "auto" and (of_trials or of_gradients):
            moved = "trial" if of_trials else "gradient"
        filled["movement"] = moved
        for name in {"trial": of_gradients, "gradient": of_trials}.get(moved, [])[:1]:
            other = f"--movement {moved}"
            if "movement" not in values:
                other = flag_of(CaptureSettings, of_trials[0])
            raise UsageError(
                f"{flag_of(CaptureSettings, name)} and {other} are mutually exclusive.",
                hint="Remove one of them.",
            )
        return build(cls, filled)

    def sampling(self) -> dict[str, object]:
        """What decides which completions are sampled and how they are judged, as plain data."""
        probed = asdict(self.objective)
        return {
            "model": asdict(self.model),
            "objective": {name: probed[name] for name in _SAMPLING},
            "seed": self.seed,
        }

    def __post_init__(self) -> None:
        """Check the seed, and what belongs together."""
        check(self)
        require(self.seed < 2**63, f"--seed is {self.seed}.", "Use 0 to 2**63 - 1.")
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
        if self.updates:
            self._check_without_probes("--update", "svd", "bootstrap", "movement")
        elif self.data.without_probes:
            self._check_without_probes("--data none", "data")

    def _check_without_probes(self, why: str, *beside: str) -> None:
        """Refuse options that say how to probe, or how to load a model that is not loaded."""
        # The objective comes first: it decides what is drawn by default.
        for part in (self.objective, self.data, self.capture, self.model):
            for name in changed(part, *beside, *(_READING if part is self.model else ())):
                require(
                    False,
                    f"{flag_of(type(part), name)} is for probes, and {why} has none: weights are "
                    "read from the files, as they are stored.",
                    "Remove one of them.",
                )
