"""What commands that read plans and scores are asked: `hlscore check` and `show`."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from hlscore.errors import UsageError
from hlscore.settings.option import arguments, check, flag_of, option, require

Drift = Literal["none", "patch", "minor"]

_MODEL = "Against the model"
_TRAINERS = "Against trainers"
_STABILITY = "Stability and age"
_BASELINE = "Against another plan"

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
        _MODEL,
    )
    revision: str | None = option(
        None,
        "Branch, tag or commit of a hub model.",
        _MODEL,
        default="the plan's, for its own model",
    )
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.", _MODEL)
    weights: bool = option(False, "The model's weights must be those that were scored.", _MODEL)
    trainers: tuple[str, ...] = option(
        (),
        "Trainer that must be able to run the plan (repeatable); `hlscore export --list` "
        "names them.",
        _TRAINERS,
        name="for",
    )
    min_selection_probability: float | None = option(
        None, "Least share of resamples that select a module in full.", _STABILITY, low=0, high=1
    )
    max_borderline: Limit | None = option(
        None,
        "Most modules selected in 10 % to 90 % of the resamples: 3, or 10%.",
        _STABILITY,
        parse=parse_limit,
    )
    max_age_days: int | None = option(
        None,
        "Most days or weeks since the plan was changed (its last commit): 90d, 12w.",
        _STABILITY,
        name="max-age",
        parse=parse_age,
    )
    max_drift: Drift | None = option(
        None, "How far installed libraries may be from those that scored.", _STABILITY
    )
    baseline: Path | None = option(None, "Another plan to compare with.", _BASELINE)
    max_changed: Limit | None = option(
        None, "Most modules whose mode or rank may differ: 3, or 5%.", _BASELINE, parse=parse_limit
    )
    min_overlap: float | None = option(
        None, "Least Jaccard index of the modules in full.", _BASELINE, low=0, high=1
    )
    min_tau: float | None = option(
        None, "Least Kendall rank correlation of the scores.", _BASELINE, low=-1, high=1
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What a module has to be to be shown; what is empty or `None` asks for nothing."""

    panel: ClassVar = "Which modules"
    match: tuple[str, ...] = option(
        (), "Only modules whose full name matches this glob (repeatable)."
    )
    kind: str | None = option(None, "Only this kind, such as down_proj or self_attn.q_proj.")
    layer: str | None = option(None, "Only this layer, or these: 3 or 0-5.")
    mode: Literal["full", "lora", "frozen"] | None = option(
        None, "Only modules that a plan trains in this mode."
    )
    status: Literal["scored", "unreached", "skipped"] | None = option(
        None, "Only rows of a report with this status."
    )

    def __post_init__(self) -> None:
        """Check every field."""
        check(self)
        first, last = self.layers or (0, 0)
        if first > last:
            raise UsageError(
                f"--layer {self.layer} ends before it begins.", hint=f"Use --layer {last}-{first}."
            )

    @property
    def layers(self) -> tuple[int, int] | None:
        """First and last decoder block."""
        if self.layer is None:
            return None
        first, dash, last = self.layer.partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdecimal() and len(end) < 10 for end in ends):
            raise UsageError(
                f"--layer is '{self.layer}'.", hint="Use one layer, 3, or several, 0-5."
            )
        return int(ends[0]), int(ends[1])

    def __str__(self) -> str:
        """The filters as options of the command line."""
        return " ".join(arguments(Filters, asdict(self)))
