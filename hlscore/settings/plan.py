"""How scores become a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hlscore.errors import UsageError
from hlscore.settings.option import changed, check, flag_of, option, refuse_both, require

Baseline = Literal[
    "lora-matched", "random", "largest", "random-largest", "last-layers", "all-lora", "all-full"
]
GatedPairs = Literal["one", "both"]
Optimizer = Literal["adamw", "adamw8bit", "adafactor", "lion", "lion8bit", "sgd", "sgd-momentum"]
Master = Literal["fp32", "bf16"]
BaseBits = Literal[16, 8, 4]

LARGEST_RANK = 8192
LARGEST_ALPHA = 64 * LARGEST_RANK
DEFAULT_RANK = 16
# Fitted on the small model of benchmarks/evidence, where it also stands how it did.
VALUE_POWER = 0.25


def parse_ranks(text: str, flag: str) -> tuple[int, ...]:
    """Whole numbers with commas between them, rising, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise UsageError(f"{flag} is '{text}'.", hint="Use whole numbers, such as 4,8,16,32,64.")
    return tuple(sorted({int(part) for part in parts}))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """What the memory of the training depends on besides the plan."""

    panel: ClassVar = "Training memory"
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    optimizer: Optimizer = option("adamw", "Optimizer of the training.")
    master: Master = option("fp32", "Precision of what is trained, its gradients and moments.")
    base_bits: BaseBits = option(16, "Bits of each frozen linear weight.", name="base")
    train_batch: int = option(1, "Sequences per step and device.", low=1, high=2**30)
    train_length: int = option(2048, "Tokens per sequence.", low=1, high=2**30)

    def __post_init__(self) -> None:
        """Check every field."""
        check(self)

    @property
    def master_bytes(self) -> int:
        """Bytes of each number that is trained."""
        return 4 if self.master == "fp32" else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """How scores become a plan."""

    panel: ClassVar = "Plan"
    # A plan file holds these settings, and no unknown keys.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    budget: str = option(
        "0.1",
        "0.1: 10 % of the candidate modules in full. 0.1p: 10 % of their parameters. 500M: "
        "that many parameters. 24GiB: training memory.",
        short="b",
    )
    score: str = option(
        "hls",
        "Score that decides; `hlscore scores` lists them.",
        default="hls; snr with --data none",
    )
    rank: int = option(
        DEFAULT_RANK,
        "LoRA rank that full fine-tuning is compared against.",
        short="r",
        low=1,
        high=LARGEST_RANK,
    )
    # Other ranks get the same ratio of alpha to rank.
    alpha: int | None = option(
        None, "LoRA alpha of the plan.", default="twice the rank", low=1, high=LARGEST_ALPHA
    )
    ranks: tuple[int, ...] = option(
        (),
        "LoRA ranks to choose from for each module, such as 4,8,16,32,64; frozen and full "
        "are always among the choices. The budget then holds everything that is trained.",
        default="one rank for all",
        parse=parse_ranks,
    )
    min_rank: int = option(
        0,
        "With --ranks: least LoRA rank of every module; 0 may freeze modules.",
        low=0,
        high=LARGEST_RANK,
    )
    # At 1 the value is the energy itself; the lower, the sooner a module's gain levels off.
    value_power: float = option(
        VALUE_POWER,
        "With --ranks: the value of a rank is the energy it captures to this power, above 0 "
        "to 1. Lower spreads ranks more evenly.",
        metavar="POWER",
        above=0,
        high=1,
    )
    gated_pairs: GatedPairs = option(
        "both",
        "How many of a gated pair (gate_proj, up_proj) may be trained in full, without --ranks.",
    )
    locks: tuple[str, ...] = option(
        (),
        "Pin modules: PATTERN=full, =lora, =frozen or =rank:N (repeatable; the last that "
        "matches counts).",
        name="lock",
    )
    baseline: Baseline | None = option(
        None,
        "Write a plan to compare with instead: LoRA of equal size, a random choice, the "
        "largest modules, those of the last layers, LoRA or full everywhere.",
    )
    memory: MemorySettings = field(default_factory=MemorySettings)

    def __post_init__(self) -> None:
        """Check every field, and those that belong together."""
        check(self)
        for rank in self.ranks:
            require(
                1 <= rank <= LARGEST_RANK, f"--ranks holds {rank}.", f"Use 1 to {LARGEST_RANK}."
            )
        require(
            all(self.lora_alpha * rank % self.rank == 0 for rank in self.ranks),
            f"--alpha {self.lora_alpha} at --rank {self.rank} gives other ranks no whole "
            "alpha of the same ratio.",
            f"Use an --alpha that is a multiple of {self.rank}.",
        )
        for name in changed(self):
            if name in ("min_rank", "value_power") and not self.ranks:
                raise UsageError(
                    f"{flag_of(PlanSettings, name)} is for plans with a rank for each module.",
                    hint="Give the ranks to choose from: --ranks 1,2,4,8.",
                )
        refuse_both("--ranks", "--gated-pairs", bool(self.ranks) and self.gated_pairs != "both")
        require(
            not self.min_rank or self.min_rank in self.ranks,
            f"--min-rank {self.min_rank} is not one of --ranks {','.join(map(str, self.ranks))}.",
            "Add it to --ranks.",
        )

    @property
    def lora_alpha(self) -> int:
        """LoRA alpha with the default filled in."""
        return 2 * self.rank if self.alpha is None else self.alpha
