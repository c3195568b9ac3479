"""Budgets: how much may be trained in full, trained at all, or held in memory."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from hlscore.errors import BudgetError
from hlscore.settings.model import NUMBER, parse_bytes

BudgetUnit = Literal["modules", "parameters", "bytes"]

_SHARE = re.compile(rf"{NUMBER}\s*(p?)", re.ASCII)
_COUNT = re.compile(rf"{NUMBER}\s*([kKMBT])", re.ASCII)
_COUNTS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_HINT = (
    "Use 0.1 for 10 % of the candidate modules, 0.1p for 10 % of their parameters, 500M for that "
    "many parameters, or 24GiB of training memory."
)
_LARGEST = 2**60


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a plan may spend: a share of the candidates, or an amount."""

    text: str  # as given
    unit: BudgetUnit  # what is limited: modules in full, parameters, or bytes of training memory
    share: float | None = None  # above 0 and at most 1; `None` for an amount
    amount: int = 0  # parameters or bytes; 0 for a share

    def limit(self, params: Sequence[int]) -> int:
        """The most that it allows of candidates with so many parameters each, in its unit."""
        if self.share is None:
            return self.amount
        return share_of(self.share, len(params) if self.unit == "modules" else sum(params))

    def trained_limit(self, params: Sequence[int]) -> int | None:
        """Most parameters that may be trained beside a limit of modules; `None` for others."""
        if self.unit != "modules" or self.share is None:
            return None
        return share_of(self.share, sum(params))

    def check_one_fits(self, params: Sequence[int]) -> None:
        """Refuse a budget that trains no module in full."""
        limit, smallest = self.limit(params), min(params)
        if self.unit == "modules" and limit < 1:
            raise BudgetError(
                f"A budget of {self.text} of {len(params)} modules is less than one module.",
                hint=f"Use at least {_round_up(1 / len(params))}.",
            )
        if self.unit == "parameters" and limit < smallest:
            share = f"{_round_up(smallest / sum(params))}p"
            raise BudgetError(
                f"A budget of {self.text} is {limit:,} parameters, less than the smallest of "
                f"{len(params)} modules ({smallest:,}).",
                hint=f"Use at least {share if self.share else f'{-(-smallest // 1000)}k'}.",
            )


def _round_up(share: float) -> float:
    """The next larger share with three digits."""
    digits = 10.0 ** (2 - math.floor(math.log10(share)))
    return math.ceil(share * digits) / digits


def share_of(share: float, whole: int) -> int:
    """A share of a count, rounded down; 0.29 of 100 is 29, whatever floating point says."""
    # The shortest decimal that is this float: what was typed.
    return math.floor(Fraction(repr(share)) * whole)


def parse_budget(text: str) -> Budget:
    """Read a budget."""
    plain = text.strip()
    if match := _SHARE.fullmatch(plain):
        share = float(match.group(1))
        if not 0 < share <= 1:
            raise BudgetError(f"The budget '{text}' is not above 0 and at most 1.", hint=_HINT)
        return Budget(text=plain, unit="parameters" if match.group(2) else "modules", share=share)
    unit: BudgetUnit = "parameters"
    if match := _COUNT.fullmatch(plain):
        number = float(match.group(1)) * _COUNTS[match.group(2)]
    elif (size := parse_bytes(plain)) is not None:
        unit, number = "bytes", size
    else:
        raise BudgetError(f"The budget '{text}' is not a share or an amount.", hint=_HINT)
    if not 1 <= number <= _LARGEST:
        raise BudgetError(f"The budget '{text}' is out of range.", hint=_HINT)
    return Budget(text=plain, unit=unit, amount=math.floor(number + 1e-6))
