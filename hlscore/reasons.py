"""Why a weight is left out or stays frozen, as sentences for reports and plans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

LeftOut = Literal[
    "", "tied", "input_embedding", "output_head", "outside_decoder", "outside_blocks",
    "convolution", "embedding_table", "quantized", "not_linear", "custom", "flat_experts",
    "not_included", "excluded", "offloaded", "sharded",
]  # fmt: skip

_SENTENCES: Mapping[LeftOut, str] = {
    "": "",
    "tied": "tied to {}",
    "input_embedding": "input embedding: ranked with --embeddings",
    "output_head": "output head: ranked with --head",
    "outside_decoder": "outside the language decoder",
    "outside_blocks": "outside the decoder blocks",
    "convolution": "convolution, not a linear map",
    "embedding_table": "embedding table inside a block",
    "quantized": "quantized weight of an unknown layout",
    "not_linear": "state, norm, bias or table, not a linear map",
    "custom": "custom parameter that may not be a linear map",
    "flat_experts": "experts stacked in two dimensions, which LoRA cannot adapt one by one",
    "not_included": "not matched by --include",
    "excluded": "matched by --exclude",
    "offloaded": "its weight is offloaded, and no linear layer computes with it",
    "sharded": "its weight is sharded, and no linear layer computes with it",
}


class Weight(Protocol):
    """A weight of a model, a report or a plan."""

    @property
    def tied_to(self) -> str:
        """Module whose weight it shares; empty for its own weight."""


def sentence(left_out: LeftOut, tied_to: str = "") -> str:
    """Why a weight is left out; empty for a candidate."""
    return _SENTENCES[left_out].format(tied_to)


def tied_modules(items: Iterable[Weight]) -> frozenset[str]:
    """Modules whose weight another module shares: LoRA on one of the two merges wrongly."""
    return frozenset(item.tied_to for item in items if item.tied_to)
