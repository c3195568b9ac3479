"""What `hlscore check` writes for CI systems."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import xmlschema
from broken_plans import line_of, made, write
from console import hlscore
from jsonschema import Draft4Validator

DATA = Path(__file__).parents[1] / "data"
COMMAND = re.compile(r"::(error|warning) ([^:]*)::(.*)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan that is whole, one with an error and a warning, and one that is no JSON."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    (tmp_path / "plans").mkdir()
    write(made(), tmp_path / "plans" / "good.json")
    broken = made()
    broken["modules"][5]["params"] = 10
    broken["modules"][11]["alpha"] = 99
    write(broken, tmp_path / "plans" / "a, b: 100% <&>.json")
    (tmp_path / "plans" / "no.json").write_text('{"a": 1,\n "b": }')
    return tmp_path


def plans(folder: Path) -> list[str]:
    return [f"plans/{path.name}" for path in sorted(folder.glob("plans/*.json"))]


@pytest.mark.parametrize("strict", [(), ("--strict",)])
def test_sarif_is_valid_and_points_at_lines(folder: Path, strict: tuple[str, ...]) -> None:
    found = hlscore("check", *plans(folder), "--format", "sarif", *strict)
    assert found.code == 1
    log = json.loads(found.out)
    schema = json.loads((DATA / "sarif-2.1.0.json").read_text())
    Draft4Validator.check_schema(schema)
    Draft4Validator(schema).validate(log)
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
    document = json.loads((folder / "plans/a, b: 100% <&>.json").read_text())
    (hit,) = [item for item in run["results"] if item["ruleId"] == "HLS206"]
    place = hit["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {
        "uri": "plans/a%2C%20b%3A%20100%25%20%3C%26%3E.json",
        "uriBaseId": "ROOT",
    }
    assert place["region"]["startLine"] == line_of(document, ("modules", 5, "params"))
    levels = {item["ruleId"]: item["level"] for item in run["results"]}
    assert levels["HLS207"] == ("error" if strict else "warning")
    prints = [item["partialFingerprints"]["hlscore/v1"] for item in run["results"]]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("strict", [(), ("--strict",)])
def test_junit_is_valid_and_counts_failures(folder: Path, strict: tuple[str, ...]) -> None:
    found = hlscore("check", *plans(folder), "--format", "junit", "-o", "out/junit.xml", *strict)
    assert found.code == 1
    assert "failed" in found.out
    schema = xmlschema.XMLSchema(DATA / "junit-10.xsd")
    schema.validate(folder / "out" / "junit.xml")
    plain: Any = schema.to_dict(folder / "out" / "junit.xml")
    suites = {suite["@name"]: suite for suite in plain["testsuite"]}
    assert set(suites) == set(plans(folder))
    failures = {name: int(suite["@failures"]) for name, suite in suites.items()}
    assert failures["plans/good.json"] == 0
    assert failures["plans/no.json"] == 1
    first = suites["plans/a, b: 100% <&>.json"]
    failed = [case["@name"][:6] for case in first["testcase"] if "failure" in case]
    assert "HLS206" in failed
    assert ("HLS207" in failed) == bool(strict)
    assert len(failed) == failures["plans/a, b: 100% <&>.json"]


def decoded(text: str) -> str:
    for code, letter in (("%0A", "\n"), ("%0D", "\r"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, letter)
    return text


def test_github_annotates_the_line_of_the_value(folder: Path) -> None:
    found = hlscore("check", *plans(folder), "--format", "github")
    assert found.code == 1
    seen = {}
    for line in found.out.splitlines():
        command = COMMAND.fullmatch(line)
        assert command, line
        level, properties, message = command.groups()
        given = dict(item.split("=", 1) for item in properties.split(","))
        seen[decoded(given["title"])[:6]] = (level, given, decoded(message))
    name = "plans/a, b: 100% <&>.json"
    lines = (folder / name).read_text().splitlines()
    level, given, message = seen["HLS206"]
    assert level == "error"
    assert decoded(given["file"]) == name
    assert lines[int(given["line"]) - 1].strip() == '"params": 10,'
    assert lines[int(given["line"]) - 1][int(given["col"]) - 1 :].startswith('"params"')
    assert "10 parameters" in message
    level, given, _ = seen["HLS207"]
    assert level == "warning"
    assert lines[int(given["line"]) - 1].strip() == '"alpha": 99,'
    _, given, _ = seen["HLS101"]
    assert (given["file"], given["line"], given["col"]) == ("plans/no.json", "2", "7")


def test_github_paths_begin_at_the_repository(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(folder))
    monkeypatch.chdir(folder / "plans")
    found = hlscore("check", "no.json", "--format", "github")
    assert "file=plans/no.json," in found.out


def test_text_names_place_code_and_remedy(folder: Path) -> None:
    found = hlscore("check", *plans(folder))
    assert found.code == 1
    assert "plans/no.json:2:7: error HLS101" in found.out
    assert "passed  plans/good.json" in found.out
    assert "\x1b" not in found.out


def test_names_with_control_characters_stay_text(folder: Path) -> None:
    document = made()
    document["modules"][5] |= {"module": "\x1b]0;x\x07::error::</failure>]]>", "params": 3}
    path = write(document, folder / "plan.json")
    for form in ("text", "github", "junit", "sarif", "json"):
        found = hlscore("check", path, "--format", form)
        assert found.code == 1
        assert "\x1b" not in found.out
        assert "\x07" not in found.out
        if form == "github":
            assert all(COMMAND.fullmatch(line) for line in found.out.splitlines())
