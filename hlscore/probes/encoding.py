"""How examples of every objective become a probe set, and what a model can read of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import DataError, UsageError
from hlscore.inputs.tokens import context_length, embedding_rows, pad_token_id
from hlscore.probes.units import ProbeExample, ProbeSet, ProbeUnit, make_probe_set
from hlscore.records import ProbeSummary
from hlscore.settings import ObjectiveSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What does not depend on the examples.

    Attributes:
        tokenizer: The model's tokenizer; needs no padding token.
        model: The model, for its context length and vocabulary; may be on the meta device.
        objective: The loss that is probed.
        max_length: Tokens kept of each sequence; `None` for the default of the objective.
        groups: Bootstrap groups per half, at most.
        seed: Seed of the split into halves.
        batch_size: Sequences that a group should have; `None` leaves the number of groups alone.
    """

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    objective: ObjectiveSettings
    max_length: int | None
    groups: int
    seed: int
    batch_size: int | None = None

    def limit(self, default: int | None = None) -> int | None:
        """Tokens kept of each sequence; `None` where there is no limit."""
        return length_limit(self.model, self.max_length, default=default)

    def probe_set(
        self, units: Sequence[ProbeUnit], summary: ProbeSummary, *, temperature: float = 1.0
    ) -> ProbeSet:
        """Check the token ids of units and split them into halves."""
        rows = embedding_rows(self.model)
        sequences = (item for unit in units for item in unit.sequences)
        largest = max((max(item.input_ids) for item in sequences), default=0)
        if largest >= rows:
            known = largest < len(self.tokenizer)
            token = self.tokenizer.convert_ids_to_tokens(largest) if known else "?"
            raise DataError(
                f"The data or its tokenizer gives id {largest} ('{token}'), but the model's "
                f"embedding has {rows} rows.",
                hint="Use the tokenizer that belongs to the model, or resize the embedding.",
            )
        return make_probe_set(
            units,
            summary=summary,
            pad_token_id=pad_token_id(self.tokenizer, self.model),
            groups=self.groups,
            seed=self.seed,
            batch_size=self.batch_size,
            temperature=temperature,
        )


def length_limit(
    model: PreTrainedModel, max_length: int | None, *, default: int | None
) -> int | None:
    """Tokens kept of each sequence; `None` where there is no limit.

    Args:
        default: The limit where nothing was asked for; `None` leaves only the context.
    """
    context = context_length(model)
    if max_length is None:
        known = [limit for limit in (default, context) if limit is not None]
        return min(known, default=None)
    if context is not None and max_length > context:
        raise UsageError(
            f"--max-length is {max_length}, but the model reads at most {context} tokens.",
            hint=f"Use --max-length {context} or less.",
        )
    return max_length


def shortened(item: ProbeExample, limit: int | None) -> ProbeExample:
    """Cut a sequence at a limit."""
    if limit is None or len(item.input_ids) <= limit:
        return item
    counted = item.counted[:limit]
    return ProbeExample(
        item.input_ids[:limit], counted, item.coefficient, item.old_log_probs[: sum(counted)]
    )


def check_two(units: Sequence[ProbeUnit], source: str, what: str) -> None:
    """Refuse data that cannot be split into two halves."""
    if len({unit.digest(0) for unit in units}) < 2:
        copies = "" if len(units) == 1 else f", {len(units)} times"
        raise DataError(
            f"'{source}' has a single usable {what}{copies}.",
            hint="The score compares two halves of the probes: give at least 2, better 64.",
        )
