"""What a check found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hlscore.artifacts.json_places import JsonPath, Place

Level = Literal["error", "warning"]

# A plan for another model differs in every module; more than this helps nobody.
MOST_PER_CODE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with a plan.

    Attributes:
        code: Of the rule that is broken.
        level: `error` fails the check; `warning` does so when it is strict.
        message: What is wrong, in one sentence.
        path: Keys and indices that lead to it in the file.
        place: Line and column in the file; `None` where there is no such place.
    """

    code: str
    level: Level
    message: str
    path: JsonPath = ()
    place: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How far a plan is from its baseline.

    Attributes:
        baseline: File of the baseline.
        modules: Modules that either plan lists.
        changed: Those whose mode or rank differs, or that one plan lacks.
        overlap: Jaccard index of the modules in full; `None` where neither plan has any.
        tau: Rank correlation of the scores of common modules; `None` where it cannot be had.
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
class CheckResult:
    """What a plan file was checked against, and what came out.

    Attributes:
        file: The file as given.
        rules: Codes of the rules that were applied.
        findings: What is wrong, in the order of the file.
        full: Modules that the plan trains in full; `None` where the file is no plan.
        modules: Modules that the plan lists; `None` where the file is no plan.
        comparison: With the baseline, where there is one.
        strict: Whether warnings fail the check.
    """

    file: Path
    rules: tuple[str, ...]
    findings: tuple[Finding, ...]
    full: int | None
    modules: int | None
    comparison: Comparison | None
    strict: bool

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong that fails the check."""
        return not any(self.strict or item.level == "error" for item in self.findings)

    def count(self, level: Level) -> int:
        """Findings of a level."""
        return sum(item.level == level for item in self.findings)


def limited(found: Iterable[Finding]) -> list[Finding]:
    """Keep the first findings of each code, and say how many more there are.

    Returns:
        At most `MOST_PER_CODE` of each code; the last one names how many were left out.
    """
    kept: dict[str, list[Finding]] = {}
    more: dict[str, int] = {}
    for item in found:
        listed = kept.setdefault(item.code, [])
        if len(listed) < MOST_PER_CODE:
            listed.append(item)
        else:
            more[item.code] = more.get(item.code, 0) + 1
    for code, count in more.items():
        last = kept[code][-1]
        kept[code][-1] = replace(last, message=f"{last.message} And {count:,} more like it.")
    return [item for listed in kept.values() for item in listed]
