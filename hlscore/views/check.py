"""What `check` prints for people and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from typing import Any

from rich.text import Text

from hlscore.checks.findings import CheckResult, Comparison, Finding
from hlscore.checks.registry import RULES
from hlscore.checks.rules import Rule
from hlscore.views.terminal import Terminal, command, picked, print_json
from hlscore.wording import count

_STYLES = {"error": "bold red", "warning": "yellow"}


def print_check(results: Sequence[CheckResult], *, console: Terminal | None = None) -> None:
    """Print what was found in plans, file by file, and a line for each file."""
    console = console or Terminal()
    for result in results:
        said = set[str]()
        for item in result.findings:
            console.print(_line(result, item))
            if item.code not in said:
                remedy = Text.assemble(("  try: ", "cyan"), RULES[item.code].remedy)
                console.print(remedy)
            said.add(item.code)
    if any(result.findings for result in results):
        console.print()
    for result in results:
        console.print(_verdict(result))
        if result.comparison is not None:
            console.dim(f"  {_distance(result.comparison)}")
    codes = sorted({item.code for result in results for item in result.findings})
    if codes:
        console.next_steps((command("check", "--explain", codes[0]), ""))


def check_text(results: Sequence[CheckResult]) -> str:
    """What `print_check` prints, without colour."""
    stream = StringIO()
    print_check(results, console=Terminal(file=stream))
    return stream.getvalue()


def _line(result: CheckResult, item: Finding) -> Text:
    place = "" if item.place is None else f":{item.place.line}:{item.place.column}"
    return Text.assemble(
        (f"{result.file}{place}: ", "bold"),
        (f"{item.level} {item.code} ", _STYLES[item.level]),
        item.message,
    )


def _verdict(result: CheckResult) -> Text:
    state = ("passed", "bold green") if result.passed else ("failed", "bold red")
    parts = [count(len(result.rules), "rule")]
    if result.modules is not None:
        parts.append(f"{result.full:,} of {count(result.modules, 'module')} in full")
    levels = Counter(item.level for item in result.findings)
    parts += [count(levels[level], level) for level in ("error", "warning") if levels[level]]
    return Text.assemble(state, f"  {result.file}: {', '.join(parts)}")


def _distance(found: Comparison) -> str:
    parts = [f"{found.changed:,} of {count(found.modules, 'module')} trained otherwise"]
    if found.overlap is not None:
        parts.append(f"overlap of the modules in full {found.overlap:.3g}")
    if found.tau is not None:
        low, high = found.tau_low, found.tau_high
        interval = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
        parts.append(f"Kendall tau {found.tau:.2f}{interval}")
    return f"against {found.baseline}: {', '.join(parts)}"


def check_json(results: Sequence[CheckResult]) -> str:
    """What was found in plans, as one JSON object: findings and distance from the baseline."""
    plain = {
        "passed": all(result.passed for result in results),
        "files": [_plain_file(result) for result in results],
    }
    return json.dumps(plain) + "\n"


def _plain_file(result: CheckResult) -> dict[str, Any]:
    found = result.comparison
    return {
        "file": str(result.file),
        "passed": result.passed,
        "modules": result.modules,
        "full_modules": result.full,
        "rules": list(result.rules),
        "findings": [_plain_finding(item) for item in result.findings],
        "comparison": found and asdict(found) | {"baseline": str(found.baseline)},
    }


def _plain_finding(item: Finding) -> dict[str, Any]:
    return {
        "code": item.code,
        "name": RULES[item.code].name,
        "level": item.level,
        "message": item.message,
        "path": list(item.path),
        "line": None if item.place is None else item.place.line,
        "column": None if item.place is None else item.place.column,
        "remedy": RULES[item.code].remedy,
    }


def print_rules(rules: Sequence[Rule], *, as_json: bool) -> None:
    """Print what rules ask for, why, and what to do."""
    if as_json:
        keys = ("code", "name", "level", "when", "asks", "why", "remedy")
        print_json([picked(rule, *keys) for rule in rules])
        return
    console = Terminal()
    for rule in rules:
        when = f", only with {rule.when}" if rule.when else ""
        console.print(Text.assemble((f"{rule.code} {rule.name}", "bold"), f" ({rule.level}{when})"))
        lines = (("  asks", rule.asks), ("  why", rule.why), ("  do", rule.remedy))
        console.labelled(lines, width=7, style="dim")
