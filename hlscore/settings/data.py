"""Which probe examples to read, and which modules may be ranked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hlscore.settings.checking import require, require_choice

DEFAULT_SAMPLES = 256
# What hlscore calls the columns that it reads.
ROLES = (
    "text", "messages", "prompt", "completion", "chosen", "rejected", "answer", "reward", "group",
    "prompt_ids", "completion_ids", "logprobs", "truncated", "finish_reason", "temperature", "step",
    "solution", "ground_truth", "tools", "chat_template_kwargs", "instruction", "input", "output",
)  # fmt: skip
DEFAULT_MAX_LENGTH = 1024
NO_DATA = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Which probe examples to read.

    Attributes:
        data: Hub id, local file or directory; `"builtin:known"`, tasks that the built-in model was
            trained on; `"builtin:new"`, a task that is new to it; `None`, the new task for SFT and
            the known ones for rewards and preferences; `"none"`, nothing is probed.
        config: Configuration name of a hub data set that has several.
        split: Split to read.
        samples: Number of examples, drawn with `seed`; 0 means all.
        max_length: Tokens kept of each example; `None` means 1024 or the model's context,
            whichever is smaller.
        columns: Maps the columns hlscore knows (`text`, `messages`, `prompt`, `completion`,
            `chosen`, `rejected`, `answer`, `reward`, `group`, ...) to the names they have in the
            data.
    """

    data: str | None = None
    config: str | None = None
    split: str = "train"
    samples: int = DEFAULT_SAMPLES
    max_length: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def without_probes(self) -> bool:
        """Whether the weights alone are read."""
        return self.data == NO_DATA

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field has a value that cannot be used.
        """
        require(self.samples >= 0, f"--samples is {self.samples}.", "Use 0 (all) or more.")
        require(
            self.max_length is None or self.max_length >= 2,
            f"--max-length is {self.max_length}.",
            "A causal loss needs at least 2 tokens.",
        )
        for role in self.columns:
            require_choice("--column", role, ROLES)


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
