"""All rules by code, and all that a plan file is checked against, in order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hlscore.artifacts.json_file import find_places
from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import inspect_plan, read_plan, read_plan_bytes
from hlscore.checks import age, arithmetic, baseline, file_format, model_fit, scores, trainers
from hlscore.checks.rule import Case, Distance, Finding, Level, Rule
from hlscore.errors import UsageError
from hlscore.exporters.exporter import find_exporter
from hlscore.settings import CheckSettings

# The model comes last: it imports torch.
_CHECKS = (file_format, arithmetic, scores, trainers, age, baseline, model_fit)
RULES: dict[str, Rule] = {
    rule.code: rule
    for rule in sorted(
        (rule for check in _CHECKS for rule in vars(check).values() if isinstance(rule, Rule)),
        key=lambda rule: rule.code,
    )
}

# A plan for another model differs in every module; more than this helps nobody.
MOST_PER_CODE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What a plan file was checked against, and what came out."""

    file: Path  # as given
    plan: Plan | None  # what it holds; `None` where it is no plan
    rules: tuple[Rule, ...]  # those that were applied
    findings: tuple[Finding, ...]  # in the order of the file
    distance: Distance | None  # from the baseline, where there is one
    strict: bool  # whether warnings fail the check

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong that fails the check."""
        return not any(self.level_of(item) == "error" for item in self.findings)

    def level_of(self, item: Finding) -> Level:
        """The level of a finding in this check."""
        return "error" if self.strict else item.level


def find_rule(code: str) -> Rule:
    """Look a rule up by its code; case does not matter."""
    rule = RULES.get(code.strip().upper())
    if rule is None:
        raise UsageError(
            f"There is no code '{code}'.", hint="`hlscore check --explain all` lists them."
        )
    return rule


def check_settings(settings: CheckSettings) -> None:
    """Refuse settings that name a trainer or a code that is unknown, before any file is read."""
    for name in settings.trainers:
        find_exporter(name)
    for code in settings.ignore:
        find_rule(code)


def check_plan(file: Path, settings: CheckSettings) -> CheckResult:
    """Check a plan file against the rules that always apply and those that are asked for."""
    data = read_plan_bytes(file)
    plan, faults = inspect_plan(data)
    other = None if settings.baseline is None else read_plan(settings.baseline)
    ignored = [find_rule(code) for code in settings.ignore]
    findings = [*file_format.check_file(faults)]
    distance = None
    if plan is not None:
        if settings.baseline is not None and other is not None:
            distance = baseline.distance(plan, file, other, settings.baseline)
        case = Case(file=file, plan=plan, settings=settings, baseline=other, distance=distance)
        for check in _CHECKS:
            findings += check.check(case)
    findings = _limited(item for item in findings if item.rule not in ignored)
    if paths := {item.path for item in findings if item.path}:
        places = find_places(data.decode("utf-8-sig"), paths)
        findings = [replace(item, place=places.get(item.path, item.place)) for item in findings]
    return CheckResult(
        file=file,
        plan=plan,
        rules=tuple(
            rule for rule in RULES.values() if rule not in ignored and rule.applies(settings)
        ),
        findings=tuple(
            sorted(
                findings,
                key=lambda item: (item.place.line, item.place.column) if item.place else (0, 0),
            )
        ),
        distance=distance,
        strict=settings.strict,
    )


def _limited(found: Iterable[Finding]) -> list[Finding]:
    """The first `MOST_PER_CODE` findings of each code; the last names how many were left out."""
    by_code: dict[str, list[Finding]] = {}
    for item in found:
        by_code.setdefault(item.code, []).append(item)
    kept = []
    for items in by_code.values():
        kept += items[:MOST_PER_CODE]
        if len(items) > MOST_PER_CODE:
            more = f"{kept[-1].message} And {len(items) - MOST_PER_CODE:,} more like it."
            kept[-1] = replace(kept[-1], message=more)
    return kept
