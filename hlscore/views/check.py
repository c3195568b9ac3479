"""What `check` prints for people and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import StringIO
from typing import Any

from rich.text import Text

from hlscore.checks.rule import Finding, Rule
from hlscore.checks.run import CheckResult
from hlscore.views.terminal import Terminal, command, picked, print_json
from hlscore.wording import count

_STYLES = {"error": "bold red", "warning": "yellow"}


def print_check(results: Sequence[CheckResult], *, console: Terminal | None = None) -> None:
    """Print what was found in plans, file by file, and a line for each file."""
    console = console or Terminal()
    codes = set[str]()
    for result in results:
        explained = set[str]()
        for item in result.findings:
            level = (f"{item.level} {item.rule.code} ", _STYLES[item.level])
            console.print(Text.assemble((f"{where(result, item)}: ", "bold"), level, item.message))
            if item.rule.code not in explained:
                console.print(Text.assemble(("  try: ", "cyan"), item.rule.remedy))
            explained.add(item.rule.code)
        codes |= explained
    if codes:
        console.print()
    for result in results:
        state = ("passed", "bold green") if result.passed else ("failed", "bold red")
        parts = [count(len(result.rules), "rule")]
        if result.plan is not None:
            modules = count(len(result.plan.modules), "module")
            parts.append(f"{len(result.plan.full):,} of {modules} in full")
        levels = Counter(item.level for item in result.findings)
        parts += [count(levels[level], level) for level in ("error", "warning") if levels[level]]
        console.print(Text.assemble(state, f"  {result.file}: {', '.join(parts)}"))
        if result.distance is not None:
            far = distance_text(asdict(result.distance))
            console.dim(f"  against {result.distance.baseline}: {far}")
    if codes:
        console.next_steps((command("check", "--explain", min(codes)), ""))


def check_text(results: Sequence[CheckResult]) -> str:
    """What `print_check` prints, without colour."""
    stream = StringIO()
    print_check(results, console=Terminal(file=stream))
    return stream.getvalue()


def where(result: CheckResult, item: Finding) -> str:
    """The file of a finding, with line and column where they are known."""
    place = "" if item.place is None else f":{item.place.line}:{item.place.column}"
    return f"{result.file}{place}"


def distance_text(found: Mapping[str, Any]) -> str:
    """How far a plan is from its baseline, from the values of `Distance` by name."""
    parts = [f"{found['changed']:,} of {count(found['modules'], 'module')} trained differently"]
    if found["overlap"] is not None:
        parts.append(f"overlap of the modules in full {found['overlap']:.3g}")
    if found["tau"] is not None:
        low, high = found["tau_low"], found["tau_high"]
        interval = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
        parts.append(f"Kendall tau {found['tau']:.2f}{interval}")
    return ", ".join(parts)


def check_json(results: Sequence[CheckResult]) -> str:
    """What was found in plans, as one JSON object: findings and distance from the baseline."""
    plain = {
        "passed": all(result.passed for result in results),
        "files": [
            {
                "file": str(result.file),
                "passed": result.passed,
                "modules": result.plan and len(result.plan.modules),
                "full_modules": result.plan and len(result.plan.full),
                "rules": [rule.code for rule in result.rules],
                "findings": [_plain(item) for item in result.findings],
                "comparison": result.distance and asdict(result.distance),
            }
            for result in results
        ],
    }
    return json.dumps(plain, default=str) + "\n"


def _plain(item: Finding) -> dict[str, Any]:
    place = item.place
    return picked(item.rule, "code", "name", "remedy") | {
        "level": item.level,
        "message": item.message,
        "path": list(item.path),
        "line": place and place.line,
        "column": place and place.column,
    }


def print_rules(rules: Sequence[Rule], *, as_json: bool) -> None:
    """Print what rules ask for, why, and what to do."""
    if as_json:
        keys = ("code", "name", "level", "asks", "why", "remedy")
        print_json([{**picked(rule, *keys), "when": rule.options} for rule in rules])
        return
    console = Terminal()
    for rule in rules:
        when = f", only with {rule.options}" if rule.when else ""
        console.print(Text.assemble((f"{rule.code} {rule.name}", "bold"), f" ({rule.level}{when})"))
        lines = (("  asks", rule.asks), ("  why", rule.why), ("  do", rule.remedy))
        console.labelled(lines, width=7, style="dim")
