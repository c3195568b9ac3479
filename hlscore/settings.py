"""Validated settings of a run: frozen records, checked on construction, never edited."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from hlscore.errors import UsageError

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
PaddingSide = Literal["right", "left"]
SvdMethod = Literal["auto", "full", "randomized"]
Estimator = Literal["auto", "exact", "sketch"]
Accumulator = Literal["device", "host"]
LoadIn = Literal["4bit", "8bit"]
DeviceMap = Literal["auto"]
Baseline = Literal["lora-matched", "random", "all-lora", "all-full"]
Optimizer = Literal["adamw", "adamw8bit", "adafactor", "lion", "lion8bit", "sgd", "sgd-momentum"]
Master = Literal["fp32", "bf16"]
BaseBits = Literal[4, 8, 16]

DEFAULT_RANK = 16
DEFAULT_SAMPLES = 256
DEFAULT_MAX_LENGTH = 1024

_MEMORY_UNITS = {
    f"{letter}{base}": (1024 if base == "IB" else 1000) ** power
    for power, letter in enumerate("KMGT", start=1)
    for base in ("B", "IB")
}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]i?B)", re.IGNORECASE | re.ASCII)


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
        shard: Spread the weights over the processes that torchrun started.
        allow_pickle: Accept `.bin` checkpoints, which can run code when opened.
        trust_remote_code: Run Python code that comes with the model.
        load_in: Quantize linear layers to this width while loading; `None` keeps them as they
            are. The embeddings, the output head and fused experts are not quantized.
        device_map: `auto` spreads the model over all GPUs, then host memory, then disk; `None`
            puts it on `device`.
        max_memory: Memory that weights may take, such as `20GiB`, by device: `cpu`, `mps` or the
            number of a GPU. Devices that are not named give nine tenths of what is free.
        offload_folder: Folder for weights that go to disk; `None` makes a temporary one.
    """

    model: str
    revision: str | None = None
    dtype: Dtype = "auto"
    device: str = "auto"
    allow_pickle: bool = False
    trust_remote_code: bool = False
    load_in: LoadIn | None = None
    device_map: DeviceMap | None = None
    max_memory: Mapping[str, str] = field(default_factory=dict)
    offload_folder: str | None = None
    shard: bool = False

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
        if self.load_in is not None:
            _require_choice("--load-in", self.load_in, get_args(LoadIn))
        self._check_device_map()

    def _check_device_map(self) -> None:
        quantized, spread = self.load_in is not None, self.device_map is not None
        for option, given in (("--load-in", quantized), ("--device-map", spread)):
            _require(
                not (self.shard and given),
                f"--shard does not go with {option}.",
                "Leave one of them away.",
            )
        if self.device_map is not None:
            _require_choice("--device-map", self.device_map, get_args(DeviceMap))
            _require(
                self.device == "auto",
                f"--device is '{self.device}', but --device-map chooses the devices.",
                "Leave one of them away.",
            )
        needs_map = (("--max-memory", self.max_memory), ("--offload-folder", self.offload_folder))
        for option, value in needs_map:
            _require(
                not value or self.device_map is not None,
                f"{option} is given, but no device map.",
                "Add --device-map auto.",
            )
        _require(
            self.offload_folder is None or bool(self.offload_folder.strip()),
            "--offload-folder is empty.",
        )
        for device, size in self.max_memory.items():
            known = device in ("cpu", "mps") or (device.isascii() and device.isdecimal())
            _require(
                known and _MEMORY.fullmatch(size) is not None,
                f"--max-memory is '{device}={size}'.",
                "Use DEVICE=SIZE, for example cpu=64GiB or 0=20GiB.",
            )

    @property
    def max_memory_bytes(self) -> dict[str, int]:
        """`max_memory` in bytes."""
        found = {}
        for device, size in self.max_memory.items():
            match = _MEMORY.fullmatch(size)
            if match is not None:
                found[device] = int(float(match[1]) * _MEMORY_UNITS[match[2].upper()])
        return found


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
        estimator: `exact` sums float32 gradients, `sketch` random projections of them; `auto` is
            exact while that fits the memory.
        sketch_size: Columns of a sketch; `None` means four times the LoRA rank, at least 64.
        passes: Passes over the probes, an odd number; every two after the first are a power
            iteration, which finds the leading directions of each gradient themselves.
        accumulate_on: Where the sums of the exact estimator are kept.
        groups: Probe groups per half, the unit that standard errors are told from.
        bootstrap: Resamples of the groups; 0 turns standard errors off.
        svd: `full` decomposes every gradient exactly, `randomized` finds the head by subspace
            iteration, `auto` is full up to a short side of 512.
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
        _require_choice("--estimator", self.estimator, get_args(Estimator))
        _require(
            self.sketch_size is None or 2 <= self.sketch_size <= 2**16,
            f"--sketch-size is {self.sketch_size}.",
            "Use 2 to 65536.",
        )
        _require(
            1 <= self.passes <= 21 and self.passes % 2 == 1,
            f"--passes is {self.passes}.",
            "Use 1, 3, 5, ...: each power iteration runs over the probes twice.",
        )
        _require(
            self.passes == 1 or self.estimator != "exact",
            f"--passes is {self.passes}, but the exact estimator needs one.",
            "Leave it out, or use --estimator sketch.",
        )
        _require_choice("--accumulate-on", self.accumulate_on, get_args(Accumulator))
        _require(
            self.accumulate_on == "device" or self.estimator != "sketch",
            "--accumulate-on host is for the exact estimator; sketches are small.",
            "Leave it out, or use --estimator exact.",
        )
        _require_choice("padding side", self.padding_side, get_args(PaddingSide))
        _require_choice("--svd", self.svd, get_args(SvdMethod))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """What the memory of the training depends on besides the plan.

    Attributes:
        optimizer: Decides the bytes of optimizer state per trained parameter.
        master: Precision of the trained parameters, their gradients and moments.
        base_bits: Bits of each frozen weight of a linear layer.
        train_batch: Sequences per step and device.
        train_length: Tokens per sequence.
    """

    optimizer: Optimizer = "adamw"
    master: Master = "fp32"
    base_bits: BaseBits = 16
    train_batch: int = 1
    train_length: int = 2048

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field has a value that cannot be used.
        """
        _require_choice("--optimizer", self.optimizer, get_args(Optimizer))
        _require_choice("--master", self.master, get_args(Master))
        _require(self.base_bits in get_args(BaseBits), f"--base is {self.base_bits} bits.")
        for option, value in (
            ("--train-batch", self.train_batch),
            ("--train-length", self.train_length),
        ):
            _require(1 <= value <= 2**30, f"{option} is {value}.", "Use 1 to 2**30.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """How scores become a plan.

    Attributes:
        budget: `0.1` (share of candidate modules), `0.1p` (share of candidate parameters), `500M`
            (parameters) or `24GiB` (training memory).
        score: Name of the score that decides.
        rank: LoRA rank that full fine-tuning is compared against.
        alpha: LoRA alpha at that rank; `None` means twice the rank. Other ranks get the same
            ratio.
        ranks: LoRA ranks that each module may get; empty means `rank` for all.
        locks: Pinned modules, `PATTERN=full|lora|frozen|rank:N`; of several that match, the last.
        baseline: A plan to compare with, in place of the one that the score gives.
        memory: What the memory of the training depends on.
    """

    budget: str = "0.1"
    score: str = "hls"
    rank: int = DEFAULT_RANK
    alpha: int | None = None
    ranks: tuple[int, ...] = ()
    locks: tuple[str, ...] = ()
    baseline: Baseline | None = None
    memory: MemorySettings = field(default_factory=MemorySettings)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field has a value that cannot be used.
        """
        _require(1 <= self.rank <= 8192, f"--rank is {self.rank}.", "Use 1 to 8192.")
        _require(
            self.alpha is None or 1 <= self.alpha <= 2**19,
            f"--alpha is {self.alpha}.",
            "Use 1 to 524288.",
        )
        if self.ranks:
            whole = all(self.lora_alpha * rank % self.rank == 0 for rank in self.ranks)
            _require(
                whole,
                f"--alpha {self.lora_alpha} at --rank {self.rank} gives other ranks no whole "
                "alpha of the same ratio.",
                f"Use an --alpha that is a multiple of {self.rank}.",
            )
        for rank in self.ranks:
            _require(1 <= rank <= 8192, f"--ranks holds {rank}.", "Use 1 to 8192.")
        if self.baseline is not None:
            _require_choice("--baseline", self.baseline, get_args(Baseline))

    def alpha_at(self, rank: int) -> int:
        """LoRA alpha of a rank: the same ratio of alpha to rank everywhere, rounded."""
        return max(1, round(self.lora_alpha * rank / self.rank))

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
        """Check the seed, and what belongs together.

        Raises:
            UsageError: The seed is outside what every generator accepts, or the sketch is too
                small for the rank.
        """
        _require(0 <= self.seed < 2**63, f"--seed is {self.seed}.", "Use 0 to 2**63 - 1.")
        size, rank = self.capture.sketch_size, max(self.plan.rank, *self.plan.ranks, 1)
        _require(
            size is None or size >= 2 * rank,
            f"--sketch-size is {size}, too few columns for rank {rank}.",
            f"Use {2 * rank} or more; the default is {max(64, 4 * rank)}.",
        )
