"""Which probe examples to read, and which modules may be ranked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from hlscore.settings.option import check, option, parse_pairs, require

DEFAULT_SAMPLES = 512
DEFAULT_MAX_LENGTH = 1024
NO_DATA = "none"
# What hlscore calls the columns that it reads.
ROLES = (
    "text", "messages", "prompt", "completion", "chosen", "rejected", "answer", "reward", "group",
    "prompt_ids", "completion_ids", "logprobs", "truncated", "finish_reason", "temperature", "step",
    "solution", "ground_truth", "tools", "chat_template_kwargs", "instruction", "input", "output",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Which probe examples to read."""

    panel: ClassVar = "Probe data"
    data: str | None = option(
        None,
        "Hub id, .jsonl .json .csv .parquet .arrow file, directory, builtin:new or "
        "builtin:known; none: no probes.",
        short="d",
        default="builtin:new; builtin:known for grpo and dpo",
    )
    config: str | None = option(
        None, "Configuration of a hub data set that has several.", name="data-config"
    )
    split: str = option("train", "Split to read.")
    columns: Mapping[str, str] = option(
        {},
        "Map a column, such as prompt=question (roles: text, messages, prompt, completion, "
        "chosen, rejected, answer, reward, group, ...; repeatable).",
        name="column",
        parse=partial(
            parse_pairs,
            form="ROLE=COLUMN",
            example="prompt=question",
            twice="Put both into one column of the data first, or choose one.",
        ),
    )
    samples: int = option(
        DEFAULT_SAMPLES,
        "Examples, pairs or prompts to draw; 0 means all.",
        default=f"{DEFAULT_SAMPLES}; 128 prompts to sample from; all rollouts of a file",
        low=0,
        hint="Use 0 (all) or more.",
    )
    max_length: int | None = option(
        None,
        "Tokens kept of each example.",
        default="1024, or the context if smaller; grpo: the context",
        low=2,
        hint="A causal loss needs at least 2 tokens.",
    )

    @property
    def without_probes(self) -> bool:
        """Whether the weights alone are read."""
        return self.data == NO_DATA

    def __post_init__(self) -> None:
        """Check every field."""
        check(self)
        for role in self.columns:
            require(
                role in ROLES,
                f"--column {role}={self.columns[role]}: '{role}' is not a role.",
                f"Use one of: {', '.join(ROLES)}.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSettings:
    """Which modules may be ranked."""

    panel: ClassVar = "Modules"
    include: tuple[str, ...] = option(
        (), "Only modules whose full name matches this glob (repeatable)."
    )
    exclude: tuple[str, ...] = option(
        (), "Leave out modules whose full name matches this glob (repeatable)."
    )
    embeddings: bool = option(False, "Include the input embedding.")
    head: bool = option(False, "Include the output head.")
