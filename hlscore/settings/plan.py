"""How scores become a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from hlscore.errors import UsageError
from hlscore.settings.option import Option, check, require

Baseline = Literal["lora-matched", "random", "largest", "random-largest", "all-lora", "all-full"]
GatedPairs = Literal["auto", "one", "both"]
Optimizer = Literal["adamw", "adamw8bit", "adafactor", "lion", "lion8bit", "sgd", "sgd-momentum"]
Master = Literal["fp32", "bf16"]
BaseBits = Literal[16, 8, 4]

PLAN_PANEL = "Plan"
MEMORY_PANEL = "Training memory"
LARGEST_RANK = 8192
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

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    optimizer: Annotated[Optimizer, Option("Optimizer of the training.", MEMORY_PANEL)] = "adamw"
    master: Annotated[
        Master, Option("Precision of what is trained, its gradients and moments.", MEMORY_PANEL)
    ] = "fp32"
    base_bits: Annotated[
        BaseBits, Option("Bits of each frozen linear weight.", MEMORY_PANEL, name="base")
    ] = 16
    train_batch: Annotated[
        int, Option("Sequences per step and device.", MEMORY_PANEL, low=1, high=2**30)
    ] = 1
    train_length: Annotated[
        int, Option("Tokens per sequence.", MEMORY_PANEL, low=1, high=2**30)
    ] = 2048

    def __post_init__(self) -> None:
        """Check every field."""
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """How scores become a plan."""

    # A plan holds these settings; what pydantic shall make of unknown keys there.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    budget: Annotated[
        str,
        Option(
            "0.1: 10 % of the candidate modules in full. 0.1p: 10 % of their parameters. 500M: "
            "that many parameters. 24GiB: training memory.",
            PLAN_PANEL,
            short="b",
        ),
    ] = "0.1"
    score: Annotated[
        str,
        Option(
            "Score that decides; `hlscore scores` lists them.",
            PLAN_PANEL,
            default="hls; snr with --data none",
        ),
    ] = "hls"
    rank: Annotated[
        int,
        Option(
            "LoRA rank that full fine-tuning is compared against.",
            PLAN_PANEL,
            short="r",
            low=1,
            high=LARGEST_RANK,
        ),
    ] = DEFAULT_RANK
    # Other ranks get the same ratio of alpha to rank.
    alpha: Annotated[
        int | None,
        Option("LoRA alpha of the plan.", PLAN_PANEL, default="twice the rank", low=1, high=2**19),
    ] = None
    ranks: Annotated[
        tuple[int, ...],
        Option(
            "LoRA ranks to choose from for each module, such as 4,8,16,32,64; frozen and full "
            "are always among the choices. The budget then holds everything that is trained.",
            PLAN_PANEL,
            default="one rank for all",
            parse=parse_ranks,
        ),
    ] = ()
    min_rank: Annotated[
        int,
        Option(
            "With --ranks: least LoRA rank of every module; 0 may freeze modules.",
            PLAN_PANEL,
            low=0,
            high=LARGEST_RANK,
        ),
    ] = 0
    # At 1 the value is the energy itself; the lower, the sooner a module's gain levels off.
    value_power: Annotated[
        float,
        Option(
            "With --ranks: the value of a rank is the energy it captures to this power, above 0 "
            "to 1. Lower spreads ranks more evenly.",
            PLAN_PANEL,
            metavar="POWER",
            above=0,
            high=1,
        ),
    ] = VALUE_POWER
    gated_pairs: Annotated[
        GatedPairs,
        Option(
            "Full modules per gated pair (gate_proj, up_proj) without --ranks; auto: one where "
            "weight updates are scored.",
            PLAN_PANEL,
        ),
    ] = "auto"
    locks: Annotated[
        tuple[str, ...],
        Option(
            "Pin modules: PATTERN=full, =lora, =frozen or =rank:N (repeatable; the last that "
            "matches counts).",
            PLAN_PANEL,
            name="lock",
        ),
    ] = ()
    baseline: Annotated[
        Baseline | None,
        Option(
            "Write a plan to compare with instead: LoRA of equal size, a random choice, the "
            "largest modules, LoRA or full everywhere.",
            PLAN_PANEL,
        ),
    ] = None
    memory: MemorySettings = field(default_factory=MemorySettings)

    def __post_init__(self) -> None:
        """Check every field, and those that belong together."""
        check(self)
        for rank in self.ranks:
            require(1 <= rank <= LARGEST_RANK, f"--ranks holds {rank}.", "Use 1 to 8192.")
        require(
            all(self.lora_alpha * rank % self.rank == 0 for rank in self.ranks),
            f"--alpha {self.lora_alpha} at --rank {self.rank} gives other ranks no whole "
            "alpha of the same ratio.",
            f"Use an --alpha that is a multiple of {self.rank}.",
        )
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

    @property
    def lora_alpha(self) -> int:
        """LoRA alpha with the default filled in."""
        return 2 * self.rank if self.alpha is None else self.alpha
