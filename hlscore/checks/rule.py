"""What a rule of `hlscore check` is, what it is applied to, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hlscore.artifacts.json_file import JsonPath, Place
from hlscore.artifacts.plan import Plan
from hlscore.settings import CheckSettings, changed, settings_in

Level = Literal["error", "warning"]

PLAN_AGAIN = "Make the plan again with `hlscore plan` or `hlscore rank`; do not edit it by hand."


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that a plan must satisfy.

    Attributes:
        code: Stable code, such as `HLS201`.
        name: Short name in words.
        asks: What has to hold, in one sentence.
        why: What goes wrong where it does not.
        remedy: What to do; by default the plan is made again.
        level: Of its findings, unless one says otherwise.
        when: Fields of the settings of which one has to be given; empty for a rule that always
            applies.
    """

    code: str
    name: str
    asks: str
    why: str
    remedy: str = PLAN_AGAIN
    level: Level = "error"
    when: tuple[str, ...] = ()

    @property
    def options(self) -> str:
        """The options of which one has to be given, in words."""
        return " or ".join(settings_in(CheckSettings)[name].flag for name in self.when)

    def applies(self, settings: CheckSettings) -> bool:
        """Whether the settings ask for it."""
        return not self.when or not set(self.when).isdisjoint(changed(settings))

    def finding(
        self, message: str, *path: str | int, level: Level | None = None, place: Place | None = None
    ) -> Finding:
        """A finding of this rule.

        Args:
            path: Keys and indices that lead to what is wrong.
            level: `error` or `warning` where it is not the rule's own.
        """
        return Finding(
            rule=self, level=level or self.level, message=message, path=path, place=place
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with a plan.

    Attributes:
        rule: The rule that is broken.
        level: `error` fails the check; `warning` does so when it is strict.
        message: What is wrong, in one sentence.
        path: Keys and indices that lead to it in the file.
        place: Line and column in the file; `None` where there is no such place.
    """

    rule: Rule
    level: Level
    message: str
    path: JsonPath
    place: Place | None

    @property
    def code(self) -> str:
        """Code of the rule."""
        return self.rule.code


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far a plan is from its baseline; the fields are keys of the JSON output.

    Attributes:
        modules: Modules that either plan lists.
        changed: Those whose mode or rank differs, or that one plan lacks.
        overlap: Jaccard index of the modules in full; `None` where neither plan has any.
        tau: Kendall's tau of the scores of common modules; `None` where it cannot be had.
        tau_low: Lower end of its 95 % interval over modules.
        tau_high: Upper end.
    """

    baseline: Path
    modules: int
    changed: int
    overlap: float | None
    tau: float | None
    tau_low: float | None
    tau_high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A plan with all that its rules look at; `baseline` and `distance` where one is given."""

    file: Path
    plan: Plan
    settings: CheckSettings
    baseline: Plan | None = None
    distance: Distance | None = None
