"""Budgets: how much may be trained in full, trained at all, or held in memory."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from hlscore.errors import BudgetError

BudgetUnit = Literal["modules", "parameters", "bytes"]

_NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
_SHARE = re.compile(rf"{_NUMBER}\s*(p?)", re.ASCII)
_COUNT = re.compile(rf"{_NUMBER}\s*([kKMBT])", re.ASCII)
_MEMORY = re.compile(rf"{_NUMBER}\s*([KMGT])(i?)B", re.ASCII | re.IGNORECASE)
_COUNTS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_HINT = (
    "Use 0.1 for 10 % of the candidate modules, 0.1p for 10 % of their parameters, 500M for that "
    "many parameters, or 24GiB of training memory."
)
_LARGEST = 2**60


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a plan may spend.

    Attributes:
        text: As given.
        unit: What is limited: modules in full, parameters, or bytes of training memory.
        share: Share of the candidates, above 0 and at most 1; `None` for an absolute amount.
        amount: Parameters or bytes; `None` for a share.
    """

    text: str
    unit: BudgetUnit
    share: float | None = None
    amount: int | None = None

    def limit(self, params: Sequence[int]) -> int:
        """Largest number of modules, parameters or bytes that the budget allows.

        Returns:
            The limit in the budget's unit; it may be too small for any module.
        """
        if self.unit == "bytes":
            return self.amount or 0
        if self.share is None:
            return self.amount or 0
        return share_of(self.share, len(params) if self.unit == "modules" else sum(params))

    def check_one_fits(self, params: Sequence[int]) -> None:
        """Refuse a budget that trains no module in full."""
        limit, whole = self.limit(params), len(params) if self.unit == "modules" else sum(params)
        if self.unit == "modules" and limit < 1:
            raise BudgetError(
                f"A budget of {self.text} of {whole} modules is less than one module.",
                hint=f"Use at least {_round_up(1 / whole)}.",
            )
        if self.unit == "parameters" and limit < min(params):
            smallest = min(params)
            least = f"{_round_up(smallest / whole)}p" if self.share else _count(smallest)
            raise BudgetError(
                f"A budget of {self.text} is {limit:,} parameters, less than the smallest of "
                f"{len(params)} modules ({smallest:,}).",
                hint=f"Use at least {least}.",
            )


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
        unit: BudgetUnit = "parameters" if match.group(2) else "modules"
        return Budget(text=plain, unit=unit, share=share)
    if match := _COUNT.fullmatch(plain):
        amount = _amount(text, float(match.group(1)) * _COUNTS[match.group(2)])
        return Budget(text=plain, unit="parameters", amount=amount)
    if match := _MEMORY.fullmatch(plain):
        power = "KMGT".index(match.group(2).upper()) + 1
        step = 1024 if match.group(3) else 1000
        amount = _amount(text, float(match.group(1)) * step**power)
        return Budget(text=plain, unit="bytes", amount=amount)
    raise BudgetError(f"The budget '{text}' is not a share or an amount.", hint=_HINT)


def _amount(text: str, number: float) -> int:
    if not 1 <= number <= _LARGEST:
        raise BudgetError(f"The budget '{text}' is out of range.", hint=_HINT)
    return math.floor(number + 1e-6)


def _round_up(share: float) -> float:
    digits = 10.0 ** (2 - math.floor(math.log10(share)))
    return math.ceil(share * digits) / digits


def _count(number: int) -> str:
    return f"{math.ceil(number / 1000)}k"
