"""Validated settings of a run: frozen records, checked on construction, never edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from hlscore.errors import UsageError

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
PaddingSide = Literal["right", "left"]
SvdMethod = Literal["auto", "full", "randomized"]

DEFAULT_RANK = 16
DEFAULT_SAMPLES = 256
DEFAULT_MAX_LENGTH = 1024


def _require(condition: bool, message: str, hint: str = "") -> None:
    if not condition:
        raise UsageError(message, hint=hint)


def _require_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{option} is '{value}'.", f"Use one of: {', '.join(choices)}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which model to load, and how.

    Attributes:
        model: Hub id, local directory, or `builtin:tiny`.
        revision: Branch, tag or commit of a hub id.
        dtype: Floating-point type of the loaded weights; `auto` keeps the checkpoint's own.
        device: `auto`, `cpu`, `mps`, `cuda` or `cuda:N`.
        allow_pickle: Accept `.bin` checkpoints, which can run code when opened.
        trust_remote_code: Run Python code that comes with the model.
    """

    model: str
    revision: str | None = None
    dtype: Dtype = "auto"
    device: str = "auto"
    allow_pickle: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field has a value that cannot be used.
        """
        _require(bool(self.model.strip()), "The model name is empty.")
        _require_choice("--dtype", self.dtype, get_args(Dtype))
        kind, _, index = self.device.partition(":")
        plain = self.device in ("auto", "cpu", "mps", "cuda")
        _require(
            plain or (kind == "cuda" and index.isdecimal()),
            f"--device is '{self.device}'.",
            "Use auto, cpu, mps, cuda or cuda:N.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Which probe examples to read.

    Attributes:
        data: Hub id, local file or directory; `None` means the built-in probes.
        config: Configuration name of a hub data set that has several.
        split: Split to read.
        samples: Number of examples, drawn with `seed`; 0 means all.
        max_length: Tokens kept of each example; `None` means 1024 or the model's context,
            whichever is smaller.
        columns: Maps the columns hlscore knows (`text`, `messages`, `prompt`, `completion`)
            to the names they have in the data.
    """

    data: str | None = None
    config: str | None = None
    split: str = "train"
    samples: int = DEFAULT_SAMPLES
    max_length: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field has a value that cannot be used.
        """
        _require(self.samples >= 0, f"--samples is {self.samples}.", "Use 0 (all) or more.")
        _require(
            self.max_length is None or self.max_length >= 2,
            f"--max-length is {self.max_length}.",
            "A causal loss needs at least 2 tokens.",
        )
        known = ("text", "messages", "prompt", "completion")
        for role in self.columns:
            _require_choice("--column", role, known)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSettings:
    """Which modules may be ranked.

    Attributes:
        include: Globs over full module names; empty means every candidate.
        exclude: Globs over full module names to leave out.
        embeddings: Rank the input embedding too.
        head: Rank the output head too.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    embeddings: bool = False
    head: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSettings:
    """How gradients are captured and reduced.

    Attributes:
        batch_size: Examples per forward and backward pass; changes speed, not scores.
        padding_side: Side on which shorter examples of a batch are padded.
        checkpointing: Recompute activations in the backward pass where the model supports it.
        groups: Probe groups per half, the unit that the bootstrap draws.
        bootstrap: Bootstrap resamples; 0 turns standard errors off.
        svd: `full` decomposes every gradient exactly, `randomized` finds the head by subspace
            iteration, `auto` is full up to a short side of 512.
    """

    batch_size: int = 8
    padding_side: PaddingSide = "right"
    checkpointing: bool = True
    groups: int = 8
    bootstrap: int = 200
    svd: SvdMethod = "auto"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field has a value that cannot be used.
        """
        _require(self.batch_size >= 1, f"--batch-size is {self.batch_size}.", "Use 1 or more.")
        _require(self.groups >= 1, f"--groups is {self.groups}.", "Use 1 or more.")
        _require(
            0 <= self.bootstrap <= 10_000,
            f"--bootstrap is {self.bootstrap}.",
            "Use 0 (off) to 10000.",
        )
        _require_choice("padding side", self.padding_side, get_args(PaddingSide))
        _require_choice("--svd", self.svd, get_args(SvdMethod))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """How scores become a plan.

    Attributes:
        budget: `0.1` (share of candidate modules) or `0.1p` (share of candidate parameters).
        score: Name of the score that decides.
        rank: LoRA rank that full fine-tuning is compared against.
        alpha: LoRA alpha; `None` means twice the rank.
    """

    budget: str = "0.1"
    score: str = "hls"
    rank: int = DEFAULT_RANK
    alpha: int | None = None

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field has a value that cannot be used.
        """
        _require(1 <= self.rank <= 8192, f"--rank is {self.rank}.", "Use 1 to 8192.")
        _require(
            self.alpha is None or self.alpha >= 1, f"--alpha is {self.alpha}.", "Use 1 or more."
        )

    @property
    def lora_alpha(self) -> int:
        """LoRA alpha with the default filled in."""
        return 2 * self.rank if self.alpha is None else self.alpha


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """Everything that decides the outcome of `hlscore rank`.

    Attributes:
        model: Which model.
        data: Which probe examples.
        candidates: Which modules.
        capture: How gradients are captured.
        plan: How scores become a plan.
        seed: Seed of sampling, halves, sketches, bootstrap and the `random` score.
    """

    model: ModelSettings
    data: DataSettings = field(default_factory=DataSettings)
    candidates: CandidateSettings = field(default_factory=CandidateSettings)
    capture: CaptureSettings = field(default_factory=CaptureSettings)
    plan: PlanSettings = field(default_factory=PlanSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the seed.

        Raises:
            UsageError: The seed is outside what every generator accepts.
        """
        _require(0 <= self.seed < 2**63, f"--seed is {self.seed}.", "Use 0 to 2**63 - 1.")
