"""Budgets: how much may be trained in full."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hlscore.errors import BudgetError

BudgetUnit = Literal["modules", "parameters"]

_SHAPE = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(p?)", re.ASCII)
_HINT = "Use 0.1 for 10 % of the candidate modules, or 0.1p for 10 % of their parameters."


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A share of the candidates that may be trained in full.

    Attributes:
        text: As given.
        share: Between 0 (excluded) and 1.
        unit: What the share is of.
    """

    text: str
    share: float
    unit: BudgetUnit

    def limit(self, params: Sequence[int]) -> int:
        """Largest number of modules, or of parameters, that the budget allows.

        Args:
            params: Parameters of each candidate.

        Returns:
            The limit in the budget's unit.

        Raises:
            BudgetError: Not a single module fits.
        """
        whole = len(params) if self.unit == "modules" else sum(params)
        # 0.1 * 30 is a hair above 3 in floating point, 0.29 * 100 a hair below 29.
        limit = math.floor(self.share * whole + 1e-9 * whole)
        if self.unit == "modules" and limit < 1:
            raise BudgetError(
                f"A budget of {self.text} of {whole} modules is less than one module.",
                hint=f"Use at least {_round_up(1 / whole)}.",
            )
        if self.unit == "parameters" and limit < min(params):
            raise BudgetError(
                f"A budget of {self.text} is {limit:,} parameters, less than the smallest of "
                f"{len(params)} modules ({min(params):,}).",
                hint=f"Use at least {_round_up(min(params) / whole)}p.",
            )
        return limit


def parse_budget(text: str) -> Budget:
    """Read a budget.

    Args:
        text: `0.1` or `0.1p`.

    Returns:
        The budget.

    Raises:
        BudgetError: The text is no budget, or the share is not above 0 and at most 1.
    """
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise BudgetError(f"The budget '{text}' is not a share.", hint=_HINT)
    share = float(match.group(1))
    if not 0 < share <= 1:
        raise BudgetError(f"The budget '{text}' is not above 0 and at most 1.", hint=_HINT)
    unit: BudgetUnit = "parameters" if match.group(2) else "modules"
    return Budget(text=text.strip(), share=share, unit=unit)


def _round_up(share: float) -> float:
    digits = 10.0 ** (2 - math.floor(math.log10(share)))
    return math.ceil(share * digits) / digits
