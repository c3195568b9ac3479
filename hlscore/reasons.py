"""Why a weight is no candidate or stays frozen: words of reports and plans that are read back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

NOT_INCLUDED = "not matched by --include"
EXCLUDED = "matched by --exclude"

NO_MAP = "state, bias or table, not a linear map"
CUSTOM = "custom parameter that may not be a linear map"
FLAT_EXPERTS = "experts stacked in two dimensions, which LoRA cannot adapt one by one"

UNREACHED = "its gradient is zero"
UNMOVED = "no training changed it"

_TIED = "tied to "


class Reasoned(Protocol):
    """A weight with the reason why it is left out; empty for a candidate."""

    @property
    def reason(self) -> str:
        """The reason."""


def tied_to(module: str) -> str:
    """The reason of a weight that another module, which comes first, has too."""
    return f"{_TIED}{module}"


def tied_modules(items: Iterable[Reasoned]) -> frozenset[str]:
    """Modules whose weight another module shares: LoRA on one of the two merges wrongly."""
    return frozenset(
        item.reason.removeprefix(_TIED) for item in items if item.reason.startswith(_TIED)
    )
