"""All that a plan file is checked against, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hlscore.artifacts.json_places import find_places
from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import Inspection, inspect_plan, read_bytes, read_plan
from hlscore.checks.age import check_age
from hlscore.checks.arithmetic import check_arithmetic
from hlscore.checks.baseline import check_baseline, compare
from hlscore.checks.file_format import check_format, check_modules
from hlscore.checks.findings import CheckResult, Comparison, Finding, limited
from hlscore.checks.model_fit import check_model
from hlscore.checks.registry import RULES, find_rule
from hlscore.checks.rules import Rule
from hlscore.checks.scores import check_scores
from hlscore.checks.stability import check_stability
from hlscore.checks.trainers import check_trainers
from hlscore.exporters.exporter import find_exporter
from hlscore.settings import CheckSettings


def check_settings(settings: CheckSettings) -> None:
    """Refuse settings that name what there is not, before any file is read."""
    for name in settings.trainers:
        find_exporter(name)
    for code in settings.ignore:
        find_rule(code)


def check_plan(file: Path, settings: CheckSettings) -> CheckResult:
    """Hold a plan file against everything that is asked.

    Args:
        settings: What is asked besides the plan's own order.

    Returns:
        The findings, in the order of the file.
    """
    data = read_bytes(file)
    found = inspect_plan(data)
    baseline = None if settings.baseline is None else read_plan(settings.baseline)
    comparison = (
        None if found.plan is None or baseline is None else compare(found.plan, baseline, settings)
    )
    ignored = {code.strip().upper() for code in settings.ignore}
    findings = (
        item for item in _findings(found, file, settings, baseline, comparison)
        if item.code not in ignored
    )  # fmt: skip
    return CheckResult(
        file=file,
        rules=tuple(
            code for code, rule in RULES.items()
            if code not in ignored and _is_applied(rule, settings)
        ),
        findings=tuple(_placed(limited(findings), found, data)),
        full=None if found.plan is None else len(found.plan.full),
        modules=None if found.plan is None else len(found.plan.modules),
        comparison=comparison,
        strict=settings.strict,
    )  # fmt: skip


def _findings(
    found: Inspection,
    file: Path,
    settings: CheckSettings,
    baseline: Plan | None,
    comparison: Comparison | None,
) -> Iterator[Finding]:
    yield from check_format(found)
    plan = found.plan
    if plan is None:
        return
    yield from check_modules(plan)
    yield from check_arithmetic(plan)
    yield from check_scores(plan)
    if settings.min_selection_probability is not None or settings.max_borderline is not None:
        yield from check_stability(plan, settings)
    yield from check_trainers(plan, settings)
    yield from check_age(plan, file, settings)
    if baseline is not None and comparison is not None:
        yield from check_baseline(plan, baseline, comparison, settings)
    if settings.model is not None:
        yield from check_model(plan, settings)


def _is_applied(rule: Rule, settings: CheckSettings) -> bool:
    asked = {
        "--model": settings.model is not None,
        "--weights": settings.weights,
        "--for": bool(settings.trainers),
        "--min-selection-probability": settings.min_selection_probability is not None,
        "--max-borderline": settings.max_borderline is not None,
        "--max-age": settings.max_age_days is not None,
        "--max-drift": settings.max_drift is not None,
        "--baseline": settings.baseline is not None,
        "--max-changed": settings.max_changed is not None,
        "--min-overlap": settings.min_overlap is not None,
        "--min-tau": settings.min_tau is not None,
    }
    return not rule.when or any(asked[option] for option in rule.when.split(" or "))


def _placed(findings: list[Finding], found: Inspection, data: bytes) -> list[Finding]:
    """The findings with their line, in the order of the file."""
    if found.version is None and found.plan is None:
        readable = not any(fault.kind == "json" for fault in found.faults)
    else:
        readable = True
    if findings and readable:
        text = data.decode("utf-8-sig")
        places = find_places(text, {item.path for item in findings})
        findings = [
            replace(item, place=item.place or (places[item.path] if item.path else None))
            for item in findings
        ]
    return sorted(
        findings,
        key=lambda item: (0, 0) if item.place is None else (item.place.line, item.place.column),
    )
