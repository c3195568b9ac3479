"""What a plan is checked against."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hlscore.errors import UsageError
from hlscore.settings.option import check, flag_of, option, require

Drift = Literal["none", "patch", "minor"]

AGAINST_MODEL_PANEL = "Against the model"
AGAINST_TRAINERS_PANEL = "Against trainers"
STABILITY_PANEL = "Stability and age"
BASELINE_PANEL = "Against another plan"

_SHARE = re.compile(r"(\d+\.\d*|\.\d+)|(\d+(?:\.\d*)?)\s*%", re.ASCII)
_WHOLE = re.compile(r"\d{1,15}", re.ASCII)
_AGE = re.compile(r"(\d{1,6})\s*([dw])", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit on a number of modules."""

    text: str  # as given
    count: int | None = None  # a number of modules; `None` for a share
    share: float | None = None  # a share of the modules, 0 to 1; `None` for a number

    def allows(self, found: int, whole: int) -> bool:
        """Whether so many of all modules are within the limit."""
        if self.count is not None:
            return found <= self.count
        return found <= (self.share or 0.0) * whole + 1e-9


def parse_limit(text: str, flag: str) -> Limit:
    """A number of modules (`3`) or a share of them (`0.1`, `10%`)."""
    plain = text.strip()
    if _WHOLE.fullmatch(plain):
        return Limit(text=plain, count=int(plain))
    if match := _SHARE.fullmatch(plain):
        share = float(match.group(1)) if match.group(1) else float(match.group(2)) / 100
        if share <= 1:
            return Limit(text=plain, share=share)
    raise UsageError(
        f"{flag} is '{text}'.", hint="Use a number of modules such as 3, or a share such as 10%."
    )


def parse_age(text: str, flag: str) -> int:
    """Days, from `90d` or `12w`."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{flag} is '{text}'.", hint="Use days or weeks: 90d or 12w.")
    return int(match.group(1)) * (7 if match.group(2) == "w" else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """What a plan is checked against besides itself."""

    model: str | None = option(
        None,
        "Hub id, directory or builtin:tiny: every module must be there, in its shape. Its "
        "configuration is enough.",
        AGAINST_MODEL_PANEL,
    )
    revision: str | None = option(
        None,
        "Branch, tag or commit of a hub model.",
        AGAINST_MODEL_PANEL,
        default="the plan's, for its own model",
    )
    trust_remote_code: bool = option(
        False, "Run Python code that comes with the model.", AGAINST_MODEL_PANEL
    )
    weights: bool = option(
        False, "The model's weights must be those that were scored.", AGAINST_MODEL_PANEL
    )
    trainers: tuple[str, ...] = option(
        (),
        "Trainer that must be able to run the plan (repeatable); `hlscore export --list` "
        "names them.",
        AGAINST_TRAINERS_PANEL,
        name="for",
    )
    min_selection_probability: float | None = option(
        None,
        "Least share of resamples that select a module in full.",
        STABILITY_PANEL,
        low=0,
        high=1,
    )
    max_borderline: Limit | None = option(
        None,
        "Most modules selected in 10 % to 90 % of the resamples: 3, or 10%.",
        STABILITY_PANEL,
        parse=parse_limit,
    )
    max_age_days: int | None = option(
        None,
        "Most days or weeks since the plan was changed (its last commit): 90d, 12w.",
        STABILITY_PANEL,
        name="max-age",
        parse=parse_age,
    )
    max_drift: Drift | None = option(
        None, "How far installed libraries may be from those that scored.", STABILITY_PANEL
    )
    baseline: Path | None = option(None, "Another plan to compare with.", BASELINE_PANEL)
    max_changed: Limit | None = option(
        None,
        "Most modules whose mode or rank may differ: 3, or 5%.",
        BASELINE_PANEL,
        parse=parse_limit,
    )
    min_overlap: float | None = option(
        None, "Least Jaccard index of the modules in full.", BASELINE_PANEL, low=0, high=1
    )
    min_tau: float | None = option(
        None, "Least Kendall rank correlation of the scores.", BASELINE_PANEL, low=-1, high=1
    )
    ignore: tuple[str, ...] = option((), "Code of a finding to ignore (repeatable).")
    strict: bool = option(False, "Warnings fail the check too.")

    def __post_init__(self) -> None:
        """Check every field, and those that belong together."""
        check(self)
        for name in ("max_changed", "min_overlap", "min_tau"):
            require(
                getattr(self, name) is None or self.baseline is not None,
                f"{flag_of(CheckSettings, name)} compares with another plan, and none is given.",
                "Name it with --baseline.",
            )
        for name in ("weights", "revision", "trust_remote_code"):
            require(
                not getattr(self, name) or self.model is not None,
                f"{flag_of(CheckSettings, name)} is about a model, and none is given.",
                "Name it with --model.",
            )
