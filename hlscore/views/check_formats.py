"""What `check` found, in the formats of CI systems."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree as ET

from hlscore._version import __version__
from hlscore.checks.rule import RULES
from hlscore.checks.run import CheckResult
from hlscore.views.check import where

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def github(results: Sequence[CheckResult]) -> str:
    """Workflow commands that annotate the lines of the plan files.

    Returns:
        One command per finding, errors first: GitHub shows ten of each level.
    """
    lines = []
    for result in results:
        for item in sorted(result.findings, key=lambda item: item.level):
            title = f"{item.rule.code} {item.rule.name}"
            properties = {"file": _relative(result.file), "title": title}
            if item.place is not None:
                properties |= {"line": str(item.place.line), "col": str(item.place.column)}
            given = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
            text = _data(f"{item.message}\n{item.rule.remedy}")
            lines.append(f"::{item.level} {given}::{text}\n")
    return "".join(lines)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _relative(file: Path) -> str:
    """The path from the root of the repository, where it lies in it; with slashes."""
    root = os.environ.get("GITHUB_WORKSPACE") or str(Path.cwd())
    whole = Path(os.path.normpath(Path.cwd() / file))
    return (whole.relative_to(root) if whole.is_relative_to(root) else whole).as_posix()


def junit(results: Sequence[CheckResult]) -> str:
    """A JUnit report: a test suite per plan, a test case per rule."""
    root = ET.Element("testsuites", name="hlscore check")
    for result in results:
        suite = ET.SubElement(root, "testsuite", name=_printable(str(result.file)))
        failures = 0
        for rule in result.rules:
            name = f"{rule.code} {rule.name}"
            case = ET.SubElement(suite, "testcase", name=name, classname="hlscore.check", time="0")
            found = [item for item in result.findings if item.rule == rule]
            fatal = [item for item in found if result.level_of(item) == "error"]
            lines = [f"{where(result, item)}: {item.level}: {item.message}" for item in found]
            text = _printable("\n".join([*lines, rule.remedy]))
            if fatal:
                failures += 1
                message = _printable(fatal[0].message)
                ET.SubElement(case, "failure", type=rule.code, message=message).text = text
            elif found:
                ET.SubElement(case, "system-out").text = text
        counts = {"tests": len(result.rules), "failures": failures}
        for name, number in {**counts, "errors": 0, "skipped": 0, "time": 0}.items():
            suite.set(name, str(number))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)


def sarif(results: Sequence[CheckResult]) -> str:
    """A SARIF 2.1.0 log, as code scanning reads it."""
    rules = [rule for rule in RULES.values() if any(rule in result.rules for result in results)]
    described = [
        {
            "id": rule.code,
            "name": "".join(word.capitalize() for word in rule.name.split()),
            "shortDescription": {"text": rule.asks},
            "fullDescription": {"text": f"{rule.asks} {rule.why}"},
            "help": {"text": rule.remedy},
            "defaultConfiguration": {"level": rule.level},
        }
        for rule in rules
    ]
    found = []
    for result in results:
        file = _relative(result.file)
        whole = Path(file).is_absolute()
        artifact = (
            {"uri": f"file://{quote(file)}"} if whole else {"uri": quote(file), "uriBaseId": "ROOT"}
        )
        for item in result.findings:
            physical: dict[str, object] = {"artifactLocation": artifact}
            if item.place is not None:
                line, column = item.place.line, item.place.column
                physical["region"] = {"startLine": line, "startColumn": column}
            # The line moves when a plan is made again; rule, place in the document and file do not.
            identity = json.dumps([item.rule.code, file, [str(part) for part in item.path]])
            found.append({
                "ruleId": item.rule.code,
                "ruleIndex": rules.index(item.rule),
                "level": result.level_of(item),
                "message": {"text": item.message},
                "locations": [{"physicalLocation": physical}],
                "partialFingerprints": {
                    "hlscore/v1": hashlib.sha256(identity.encode()).hexdigest()
                },
            })  # fmt: skip
    tool = {"driver": {"name": "hlscore", "semanticVersion": __version__, "rules": described}}
    run = {
        "tool": tool,
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"ROOT": {"description": {"text": "The root of the repository."}}},
        "results": found,
    }
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"
