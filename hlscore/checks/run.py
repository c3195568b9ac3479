"""All rules by code, and all that a plan file is checked against, in order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hlscore.artifacts.json_file import find_places
from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import inspect_plan, read_plan, read_plan_bytes
from hlscore.checks.age import check_age
from hlscore.checks.arithmetic import check_arithmetic, check_entries
from hlscore.checks.baseline import check_baseline, distance
from hlscore.checks.fit import check_model, check_trainers
from hlscore.checks.rule import RULES, Case, Distance, Finding, Level, Rule, finding
from hlscore.checks.scores import check_scores, check_stability
from hlscore.errors import UsageError
from hlscore.exporters.exporter import find_exporter
from hlscore.settings import CheckSettings

_CHECKS = (
    check_entries, check_arithmetic, check_scores, check_stability, check_trainers, check_age,
    check_baseline,
    check_model,  # the last: it imports torch
)  # fmt: skip

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


def contradiction(file: Path, plan: Plan) -> str:
    """What does not add up in a plan that can be read, as a warning; empty where all does."""
    case = Case(file=file, plan=plan, settings=CheckSettings())
    found = [item.message for item in check_arithmetic(case) if item.level == "error"]
    return f"'{file}': {found[0]} `hlscore check` lists all that is wrong." if found else ""


def check_plan(file: Path, settings: CheckSettings) -> CheckResult:
    """Check a plan file against the rules that always apply and those that are asked for."""
    data = read_plan_bytes(file)
    plan, faults = inspect_plan(data)
    other = None if settings.baseline is None else read_plan(settings.baseline)
    ignored = [find_rule(code) for code in settings.ignore]
    found = []
    for fault in faults:
        message = f"{fault.message[0].upper()}{fault.message[1:]}."
        found.append(replace(finding(fault.code, message, fault.path), place=fault.place))
    far = None
    if plan is not None:
        if settings.baseline is not None and other is not None:
            far = distance(plan, file, other, settings.baseline)
        case = Case(file=file, plan=plan, settings=settings, baseline=other, distance=far)
        for check in _CHECKS:
            found += check(case)

    by_code: dict[str, list[Finding]] = {}
    for item in found:
        if item.rule not in ignored:
            by_code.setdefault(item.rule.code, []).append(item)
    findings: list[Finding] = []
    for items in by_code.values():
        findings += items[:MOST_PER_CODE]
        if len(items) > MOST_PER_CODE:
            more = f"{findings[-1].message} And {len(items) - MOST_PER_CODE:,} more like it."
            findings[-1] = replace(findings[-1], message=more)
    if paths := {item.path for item in findings if item.path}:
        places = find_places(data.decode("utf-8-sig"), paths)
        findings = [replace(item, place=places.get(item.path, item.place)) for item in findings]
    findings.sort(key=lambda item: (item.place.line, item.place.column) if item.place else (0, 0))
    rules = (rule for rule in RULES.values() if rule not in ignored and rule.applies(settings))
    return CheckResult(
        file=file,
        plan=plan,
        rules=tuple(rules),
        findings=tuple(findings),
        distance=far,
        strict=settings.strict,
    )
