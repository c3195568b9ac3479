"""The summary of a job, in GitHub's Markdown; names in it are untrusted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hlscore.pages.escaping import name, prose
from hlscore.wording import count

MOST_FINDINGS = 50
_MOST_LETTERS = 400


def summary(found: dict[str, Any]) -> str:
    """Write what was found in all plans.

    Args:
        found: As `hlscore check --format json` writes it.

    Returns:
        Markdown: a table of the plans, and one of their findings, errors first.
    """
    findings = [(file, item) for file in found["files"] for item in file["findings"]]
    findings.sort(key=lambda pair: pair[1]["level"])
    lines = [f"## hlscore check {'passed' if found['passed'] else 'failed'}", ""]
    lines += ["| plan | result | in full | errors | warnings |", "|---|---|---:|---:|---:|"]
    lines += [_plan(file) for file in found["files"]]
    lines += [line for file in found["files"] for line in _distance(file)]
    if findings:
        lines += [
            "",
            "| level | rule | place | what is wrong | what to do |",
            "|---|---|---|---|---|",
        ]
        lines += [_finding(file, item) for file, item in findings[:MOST_FINDINGS]]
    if len(findings) > MOST_FINDINGS:
        left = len(findings) - MOST_FINDINGS
        lines += ["", f"{count(left, 'more finding')} in the log."]
    return "\n".join(lines) + "\n"


def could_not_run(message: str) -> str:
    """Write why there is no result.

    Args:
        message: The error.

    Returns:
        Markdown.
    """
    return f"## hlscore check could not run\n\n{prose(_one_line(message))}\n"


def _plan(file: dict[str, Any]) -> str:
    result = "passed" if file["passed"] else "**failed**"
    in_full = "" if file["modules"] is None else f"{file['full_modules']:,} of {file['modules']:,}"
    levels = [item["level"] for item in file["findings"]]
    errors, warnings = levels.count("error"), levels.count("warning")
    return f"| {name(_one_line(file['file']))} | {result} | {in_full} | {errors} | {warnings} |"


def _distance(file: dict[str, Any]) -> Iterator[str]:
    """How far a plan is from its baseline, where there is one."""
    found = file["comparison"]
    if found is None:
        return
    from hlscore.views.check import distance_text  # what could not run is said without rich

    names = (name(_one_line(text)) for text in (file["file"], found["baseline"]))
    yield ""
    yield f"{' against '.join(names)}: {distance_text(found)}."


def _finding(file: dict[str, Any], item: dict[str, Any]) -> str:
    place = file["file"] if item["line"] is None else f"{file['file']}:{item['line']}"
    cells = (
        item["level"],
        f"{item['code']} {item['name']}",
        name(_one_line(place)),
        prose(_one_line(item["message"])),
        prose(item["remedy"]),
    )
    return f"| {' | '.join(cells)} |"


def _one_line(text: str) -> str:
    """Text that fits a cell of a table: no line ends, no control characters, not too long."""
    cut = text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."
    return "".join(letter if letter.isprintable() else " " for letter in cut)
