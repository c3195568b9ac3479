"""How scores become a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from hlscore.settings.checking import require, require_choice

Baseline = Literal["lora-matched", "random", "largest", "random-largest", "all-lora", "all-full"]
Optimizer = Literal["adamw", "adamw8bit", "adafactor", "lion", "lion8bit", "sgd", "sgd-momentum"]
Master = Literal["fp32", "bf16"]
BaseBits = Literal[4, 8, 16]

DEFAULT_RANK = 16
# Fitted on the small model of benchmarks/evidence, where it also stands how it did.
VALUE_POWER = 0.25


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
        require_choice("--optimizer", self.optimizer, get_args(Optimizer))
        require_choice("--master", self.master, get_args(Master))
        require(self.base_bits in get_args(BaseBits), f"--base is {self.base_bits} bits.")
        for option, value in (
            ("--train-batch", self.train_batch),
            ("--train-length", self.train_length),
        ):
            require(1 <= value <= 2**30, f"{option} is {value}.", "Use 1 to 2**30.")


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
        min_rank: With ranks: the least that each module gets; 0 may leave modules frozen.
        value_power: With ranks: what an option is worth is the gradient energy that it reaches to
            this power. At 1 it is the energy itself; the lower, the sooner a module's gain levels
            off, and the more evenly ranks are spread.
        locks: Pinned modules, `PATTERN=full|lora|frozen|rank:N`; of several that match, the last.
        baseline: A plan to compare with, in place of the one that the score gives.
        memory: What the memory of the training depends on.
    """

    budget: str = "0.1"
    score: str = "hls"
    rank: int = DEFAULT_RANK
    alpha: int | None = None
    ranks: tuple[int, ...] = ()
    min_rank: int = 0
    value_power: float = VALUE_POWER
    locks: tuple[str, ...] = ()
    baseline: Baseline | None = None
    memory: MemorySettings = field(default_factory=MemorySettings)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field has a value that cannot be used.
        """
        require(1 <= self.rank <= 8192, f"--rank is {self.rank}.", "Use 1 to 8192.")
        require(
            self.alpha is None or 1 <= self.alpha <= 2**19,
            f"--alpha is {self.alpha}.",
            "Use 1 to 524288.",
        )
        if self.ranks:
            whole = all(self.lora_alpha * rank % self.rank == 0 for rank in self.ranks)
            require(
                whole,
                f"--alpha {self.lora_alpha} at --rank {self.rank} gives other ranks no whole "
                "alpha of the same ratio.",
                f"Use an --alpha that is a multiple of {self.rank}.",
            )
        for rank in self.ranks:
            require(1 <= rank <= 8192, f"--ranks holds {rank}.", "Use 1 to 8192.")
        require(0 <= self.min_rank <= 8192, f"--min-rank is {self.min_rank}.", "Use 0 to 8192.")
        require(
            not self.min_rank or bool(self.ranks),
            "--min-rank is for plans with a rank for each module.",
            "Give the ranks to choose from: --ranks 1,2,4,8.",
        )
        require(
            not self.min_rank or self.min_rank in self.ranks,
            f"--min-rank {self.min_rank} is not one of --ranks {','.join(map(str, self.ranks))}.",
            "Add it to --ranks.",
        )
        require(
            0 < self.value_power <= 1,
            f"--value-power is {self.value_power:g}.",
            "Use a number above 0 and at most 1.",
        )
        if self.baseline is not None:
            require_choice("--baseline", self.baseline, get_args(Baseline))

    def alpha_at(self, rank: int) -> int:
        """LoRA alpha of a rank: the same ratio of alpha to rank everywhere, rounded."""
        return max(1, round(self.lora_alpha * rank / self.rank))

    @property
    def lora_alpha(self) -> int:
        """LoRA alpha with the default filled in."""
        return 2 * self.rank if self.alpha is None else self.alpha
