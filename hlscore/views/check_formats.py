"""What `check` found, in the formats of CI systems."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

from hlscore._version import __version__
from hlscore.checks.findings import CheckResult, Finding
from hlscore.checks.registry import RULES

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def github(results: Sequence[CheckResult]) -> str:
    """Workflow commands that annotate the lines of the plan files.

    Returns:
        One command per finding, errors first: GitHub shows ten of each level.
    """
    lines = []
    for result in results:
        file = _relative(result.file)
        for item in sorted(result.findings, key=lambda item: item.level):
            rule = RULES[item.code]
            properties = {"file": file, "title": f"{item.code} {rule.name}"}
            if item.place is not None:
                properties |= {"line": str(item.place.line), "col": str(item.place.column)}
            given = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
            text = _data(f"{item.message}\n{rule.remedy}")
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
        failed = 0
        for code in result.rules:
            rule = RULES[code]
            case = ET.SubElement(
                suite, "testcase", name=f"{code} {rule.name}", classname="hlscore.check", time="0"
            )
            found = [item for item in result.findings if item.code == code]
            fatal = [item for item in found if result.strict or item.level == "error"]
            text = "\n".join(_printable(_located(result, item)) for item in found)
            if fatal:
                failed += 1
                failure = ET.SubElement(
                    case, "failure", type=code, message=_printable(fatal[0].message)
                )
                failure.text = f"{text}\n{rule.remedy}"
            elif found:
                ET.SubElement(case, "system-out").text = f"{text}\n{rule.remedy}"
        suite.set("tests", str(len(result.rules)))
        suite.set("failures", str(failed))
        suite.set("errors", "0")
        suite.set("skipped", "0")
        suite.set("time", "0")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _located(result: CheckResult, item: Finding) -> str:
    place = "" if item.place is None else f":{item.place.line}:{item.place.column}"
    return f"{result.file}{place}: {item.level}: {item.message}"


def _printable(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)


def sarif(results: Sequence[CheckResult]) -> str:
    """A SARIF 2.1.0 log, as code scanning reads it."""
    codes = [code for code in RULES if any(code in result.rules for result in results)]
    found = [_sarif_result(result, item, codes) for result in results for item in result.findings]
    run = {
        "tool": {
            "driver": {
                "name": "hlscore",
                "semanticVersion": __version__,
                "rules": [_sarif_rule(code) for code in codes],
            }
        },
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"ROOT": {"description": {"text": "The root of the repository."}}},
        "results": found,
    }
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _sarif_rule(code: str) -> dict[str, Any]:
    rule = RULES[code]
    return {
        "id": code,
        "name": "".join(word.capitalize() for word in rule.name.split()),
        "shortDescription": {"text": rule.asks},
        "fullDescription": {"text": f"{rule.asks} {rule.why}"},
        "help": {"text": rule.remedy},
        "defaultConfiguration": {"level": rule.level},
    }


def _sarif_result(result: CheckResult, item: Finding, codes: Sequence[str]) -> dict[str, Any]:
    file = _relative(result.file)
    # The line moves when a plan is made again; rule, place in the document and file do not.
    identity = json.dumps([item.code, file, [str(part) for part in item.path]])
    return {
        "ruleId": item.code,
        "ruleIndex": codes.index(item.code),
        "level": "error" if result.strict else item.level,
        "message": {"text": item.message},
        "locations": [{"physicalLocation": dict(_physical(file, item))}],
        "partialFingerprints": {"hlscore/v1": hashlib.sha256(identity.encode()).hexdigest()},
    }


def _physical(file: str, item: Finding) -> Iterator[tuple[str, Any]]:
    whole = Path(file).is_absolute()
    artifact = {"uri": f"file://{quote(file)}"} if whole else {
        "uri": quote(file), "uriBaseId": "ROOT",
    }  # fmt: skip
    yield "artifactLocation", artifact
    if item.place is not None:
        yield "region", {"startLine": item.place.line, "startColumn": item.place.column}
