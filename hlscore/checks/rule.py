"""What a rule of `hlscore check` is, what it is applied to, and what it finds."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from hlscore.artifacts.json_file import JsonPath, Place
from hlscore.artifacts.plan import Plan
from hlscore.settings import CheckSettings, changed, settings_in

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that a plan must satisfy, as `rules.toml` says it."""

    code: str  # stable, such as `HLS201`
    name: str
    asks: str  # what has to hold, in one sentence
    why: str  # what goes wrong where it does not
    remedy: str = (
        "Make the plan again with `hlscore plan` or `hlscore rank`; do not edit it by hand."
    )
    level: Level = "error"  # of its findings, unless one says otherwise
    when: Sequence[str] = ()  # settings of which one has to be given; empty: always applied

    @property
    def options(self) -> str:
        """The options of which one has to be given, in words."""
        return " or ".join(settings_in(CheckSettings)[name].flag for name in self.when)

    def applies(self, settings: CheckSettings) -> bool:
        """Whether the settings ask for it."""
        return not self.when or not set(self.when).isdisjoint(changed(settings))


RULES = {
    code: Rule(code=code, **texts)
    for code, texts in tomllib.loads(
        (resources.files("hlscore.checks") / "rules.toml").read_text("utf-8")
    ).items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with a plan."""

    rule: Rule
    level: Level  # `error` fails the check; `warning` does so when it is strict
    message: str  # in one sentence
    path: JsonPath  # keys and indices that lead to it in the file
    place: Place | None = None  # line and column in the file, where there are any


def finding(code: str, message: str, path: JsonPath = (), *, level: Level | None = None) -> Finding:
    """A finding of a rule, at the rule's own level where no other is given."""
    rule = RULES[code]
    return Finding(rule=rule, level=level or rule.level, message=message, path=path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far a plan is from its baseline; the fields are keys of the JSON output."""

    baseline: Path
    modules: int  # that either plan lists
    changed: int  # those whose mode or rank differs, or that one plan lacks
    overlap: float | None  # Jaccard index of the modules in full; `None` where neither has any
    tau: float | None  # Kendall's tau of the scores of common modules, where it can be had
    tau_low: float | None  # lower end of its 95 % interval over modules
    tau_high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A plan with all that its rules look at; `baseline` and `distance` where one is given."""

    file: Path
    plan: Plan
    settings: CheckSettings
    baseline: Plan | None = None
    distance: Distance | None = None
