"""Everything that decides the outcome of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from hlscore.settings.capture import CaptureSettings, Movement
from hlscore.settings.checking import changed, require
from hlscore.settings.data import (
    DEFAULT_SAMPLES,
    NO_DATA,
    CandidateSettings,
    DataSettings,
)
from hlscore.settings.model import ModelSettings
from hlscore.settings.objective import DEFAULT_PROMPTS, ObjectiveSettings, option_name
from hlscore.settings.plan import PlanSettings


def samples_for(asked: int | None, objective: ObjectiveSettings) -> int:
    """Fill in how many examples, pairs or prompts are drawn.

    Args:
        asked: As given; `None` when nothing was.
        objective: The loss that is probed.

    Returns:
        What was asked for; else 256, 128 prompts where the model samples completions itself, and 0
        (all) where a file brings them.
    """
    if asked is not None:
        return asked
    if objective.objective != "grpo":
        return DEFAULT_SAMPLES
    return DEFAULT_PROMPTS if objective.samples_rollouts else 0


def movement_for(asked: Movement, updates: Sequence[str]) -> Movement:
    """Fill in what is scored.

    Args:
        asked: As given.
        updates: Finished trainings.

    Returns:
        `update` where there are finished trainings and nothing else was asked for.
    """
    return "update" if updates and asked == "auto" else asked


def score_for(asked: str | None, data: object) -> str:
    """Fill in which score decides.

    Args:
        asked: As given; `None` when nothing was.
        data: What is probed.

    Returns:
        What was asked for; else `hls`, or `snr` where nothing is probed.
    """
    if asked is not None:
        return asked
    return "snr" if data == NO_DATA else "hls"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """Everything that decides the outcome of `hlscore rank`.

    Attributes:
        model: Which model.
        data: Which probe examples.
        objective: Which loss is probed.
        candidates: Which modules.
        capture: How gradients are captured.
        plan: How scores become a plan.
        updates: Finished trainings whose weight updates are scored: directories or hub ids of
            fine-tuned models or PEFT adapters.
        weight_scores: Decompose the weights too, for the scores that need nothing else. Without
            probes, and where such a score decides, that is done anyway.
        seed: Seed of sampling, halves, sketches, bootstrap and the `random` score.
    """

    model: ModelSettings
    data: DataSettings = field(default_factory=DataSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    candidates: CandidateSettings = field(default_factory=CandidateSettings)
    capture: CaptureSettings = field(default_factory=CaptureSettings)
    plan: PlanSettings = field(default_factory=PlanSettings)
    updates: tuple[str, ...] = ()
    weight_scores: bool = False
    seed: int = 0

    def sampling(self) -> dict[str, object]:
        """What decides which completions are sampled and how they are judged, as plain data."""
        probed = asdict(self.objective)
        names = (
            "rewards", "reward_weights", "generations", "temperature", "top_p", "top_k",
            "max_new_tokens", "stop", "generate_batch",
        )  # fmt: skip
        return {
            "model": asdict(self.model),
            "objective": {name: probed[name] for name in names},
            "seed": self.seed,
        }

    def __post_init__(self) -> None:
        """Check the seed, and what belongs together.

        Raises:
            UsageError: The seed is outside what every generator accepts, or the sketch is too
                small for the rank.
        """
        require(0 <= self.seed < 2**63, f"--seed is {self.seed}.", "Use 0 to 2**63 - 1.")
        size, rank = self.capture.sketch_size, max(self.plan.rank, *self.plan.ranks, 1)
        require(
            size is None or size >= 2 * rank,
            f"--sketch-size is {size}, too few columns for rank {rank}.",
            f"Use {2 * rank} or more; the default is {max(64, 4 * rank)}.",
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
        require(
            probed.rollouts is None or self.data.data is None,
            "--data is given beside --rollouts, which brings prompts of its own.",
            "Leave one of them out.",
        )
        moved = self.capture.movement
        require(
            (moved == "update") == bool(self.updates),
            f"--movement is {moved}, but --update is given."
            if self.updates
            else "--movement update needs a finished training.",
            "Leave --movement out." if self.updates else "Give --update CHECKPOINT.",
        )
        if self.updates:
            require(
                len(set(self.updates)) == len(self.updates),
                "--update names a training twice: its noise would count as signal.",
                "Name each one once.",
            )
            require(
                not self.data.without_probes,
                "--data none and --update exclude each other.",
                "Leave one of them out.",
            )
            self._check_without_probes("--update", "data", "svd", "bootstrap", "movement")
        elif self.data.without_probes:
            self._check_without_probes("--data none", "data")

    def _check_without_probes(self, why: str, *beside: str) -> None:
        """Refuse options that say how to probe, or how to load a model that is not loaded."""
        given = (
            *changed(self.objective),  # first: it decides what is drawn by default
            *changed(self.data, *(() if self.updates else beside)),
            *changed(self.capture, *beside),
            *changed(self.model, "model", "revision", "device", "allow_pickle",
                      "trust_remote_code", "text_only", "ignore_adapter"),
        )  # fmt: skip
        require(
            not given,
            f"--{option_name(given[0]) if given else ''} is for probes, and {why} has none: "
            "weights are read from the files, as they are stored.",
            "Leave one of them out.",
        )
