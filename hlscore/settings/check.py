"""What a plan is held against."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from hlscore.errors import UsageError
from hlscore.settings.checking import require, require_choice

Drift = Literal["none", "patch", "minor"]

_SHARE = re.compile(r"(\d+\.\d*|\.\d+)|(\d+(?:\.\d*)?)\s*%", re.ASCII)
_WHOLE = re.compile(r"\d{1,15}", re.ASCII)
_AGE = re.compile(r"(\d{1,6})\s*([dw])", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Most:
    """The most modules that something may be true of.

    Attributes:
        text: As given.
        count: A number of modules; `None` for a share.
        share: A share of the modules, 0 to 1; `None` for a number.
    """

    text: str
    count: int | None = None
    share: float | None = None

    def allows(self, found: int, whole: int) -> bool:
        """Whether a number of modules is within the limit.

        Args:
            found: Modules that it is true of.
            whole: All modules.
        """
        if self.count is not None:
            return found <= self.count
        return found <= (self.share or 0.0) * whole + 1e-9


def parse_most(option: str, text: str) -> Most:
    """Read a number of modules or a share of them.

    Args:
        option: Name of the option.
        text: `3`, `0.1` or `10%`.

    Returns:
        The limit.

    Raises:
        UsageError: Something else stands there.
    """
    plain = text.strip()
    if _WHOLE.fullmatch(plain):
        return Most(text=plain, count=int(plain))
    if match := _SHARE.fullmatch(plain):
        share = float(match.group(1)) if match.group(1) else float(match.group(2)) / 100
        if share <= 1:
            return Most(text=plain, share=share)
    raise UsageError(
        f"{option} is '{text}'.", hint="Use a number of modules such as 3, or a share such as 10%."
    )


def parse_age(text: str) -> int:
    """Read an age.

    Args:
        text: `90d` or `12w`.

    Returns:
        The age in days.

    Raises:
        UsageError: Something else stands there.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--max-age is '{text}'.", hint="Use days or weeks: 90d or 12w.")
    return int(match.group(1)) * (7 if match.group(2) == "w" else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """What a plan is held against besides itself.

    Attributes:
        model: Hub id or directory of the model that the plan must fit.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Run code that comes with the model.
        weights: Compare the model's weights too.
        trainers: Exporters that must be able to express the plan.
        min_selection_probability: Least share of resamples that must choose a module in full.
        max_borderline: Most modules that may be chosen in some resamples and not in others.
        max_age_days: Most days since the file was changed.
        max_drift: How far the installed libraries may be from those that scored.
        baseline: Another plan that this one may differ from only so much.
        max_changed: Most modules whose mode or rank may differ from the baseline's.
        min_overlap: Least Jaccard index of the modules in full.
        min_tau: Least rank correlation of the scores.
        ignore: Codes of findings to leave out.
        strict: Warnings count as errors.
    """

    model: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    weights: bool = False
    trainers: tuple[str, ...] = ()
    min_selection_probability: float | None = None
    max_borderline: Most | None = None
    max_age_days: int | None = None
    max_drift: Drift | None = None
    baseline: Path | None = None
    max_changed: Most | None = None
    min_overlap: float | None = None
    min_tau: float | None = None
    ignore: tuple[str, ...] = ()
    strict: bool = False

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field has a value that cannot be used.
        """
        _require_between("--min-selection-probability", self.min_selection_probability, 0, 1)
        _require_between("--min-overlap", self.min_overlap, 0, 1)
        _require_between("--min-tau", self.min_tau, -1, 1)
        if self.max_drift is not None:
            require_choice("--max-drift", self.max_drift, get_args(Drift))
        for option, given in (
            ("--max-changed", self.max_changed),
            ("--min-overlap", self.min_overlap),
            ("--min-tau", self.min_tau),
        ):
            require(
                given is None or self.baseline is not None,
                f"{option} compares with another plan, and none is given.",
                "Name it with --baseline.",
            )
        for option, on in (
            ("--weights", self.weights),
            ("--revision", self.revision is not None),
            ("--trust-remote-code", self.trust_remote_code),
        ):
            require(
                not on or self.model is not None,
                f"{option} is about a model, and none is given.",
                "Name it with --model.",
            )


def _require_between(option: str, value: float | None, low: float, high: float) -> None:
    if value is not None:
        inside = math.isfinite(value) and low <= value <= high
        require(inside, f"{option} is {value:g}.", f"Use {low} to {high}.")
