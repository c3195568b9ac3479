"""The section "Guard a plan in CI" of the rules works when it is copied."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from action_runs import ROOT, THIS_PYTHON, filled, metadata, run_action
from broken_plans import made, write
from jsonschema import Draft4Validator

README = ROOT / "hlscore" / "checks" / "README.md"
TITLE = "Guard a plan in CI"
ACTION = re.compile(r"[\w.-]+/hlscore@")
OTHERS = ("actions/checkout@", "actions/setup-python@")
SCHEMA = json.loads((Path(__file__).parent / "data" / "sarif-2.1.0.json").read_text())


def blocks(language: str) -> list[str]:
    """The fenced blocks of the section in a language."""
    section = README.read_text().split(f"\n## {TITLE}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def block_with(key: str) -> dict[str, Any]:
    """The one block of YAML that has a key."""
    loaded = [yaml.safe_load(text) for text in blocks("yaml")]
    (content,) = [item for item in loaded if isinstance(item, dict) and key in item]
    return dict(content)


def steps() -> list[dict[str, Any]]:
    (job,) = block_with("jobs")["jobs"].values()
    return list(job["steps"])


def action_step() -> dict[str, Any]:
    (found,) = [step for step in steps() if ACTION.match(step["uses"])]
    return found


def test_the_workflow_asks_for_no_more_than_it_needs_and_there_is() -> None:
    workflow = block_with("jobs")
    (job,) = workflow["jobs"].values()
    allowed = [workflow["permissions"], job.get("permissions", workflow["permissions"])]
    assert allowed[-1] == {"contents": "read", "security-events": "write"}
    assert all(rights.items() <= allowed[-1].items() for rights in allowed)
    assert set(action_step()["with"]) <= set(metadata()["inputs"])


@pytest.mark.parametrize("whole", [True, False])
def test_the_job_runs(tmp_path: Path, whole: bool) -> None:
    workspace, runner = tmp_path / "workspace", tmp_path / "runner"
    workspace.mkdir()
    (rules,) = blocks("toml")
    (workspace / "hlscore-check.toml").write_text(rules)
    document = made()
    if not whole:
        document["modules"][5]["params"] = 10
    for plan in tomllib.loads(rules)["plans"]:
        (workspace / plan).parent.mkdir(parents=True, exist_ok=True)
        write(document, workspace / plan)
    ran = []
    for step in steps():
        given = {name: filled(str(value), {}) for name, value in step.get("with", {}).items()}
        if ACTION.match(step["uses"]):
            found = run_action(workspace, runner, THIS_PYTHON | given)
            assert found.code == (0 if whole else 1), found.log
            assert ("HLS206" in found.summary) != whole
        elif step["uses"].startswith("github/codeql-action/upload-sarif@"):
            assert re.search(r"always\(\)|!cancelled\(\)", step["if"]), "a failed check has alerts"
            wanted = f"hashFiles('{given['sarif_file']}') != ''"
            assert wanted in step["if"], "a check that could not run writes no file"
            log = json.loads((workspace / given["sarif_file"]).read_text())
            Draft4Validator(SCHEMA).validate(log)
            assert bool(log["runs"][0]["results"]) != whole
        else:
            assert step["uses"].startswith(OTHERS)
        ran.append(step["uses"].partition("@")[0].rpartition("/")[2])
    assert ran[0] == "checkout"
    assert ran[-2:] == ["hlscore", "upload-sarif"]


def test_commented_rules_are_rules_too(tmp_path: Path) -> None:
    from hlscore.checks.configuration import read_configuration
    from hlscore.settings import CheckSettings

    (rules,) = blocks("toml")
    file = tmp_path / "hlscore-check.toml"
    file.write_text(re.sub(r"^# (?=[a-z-]+ = )", "", rules, flags=re.MULTILINE))
    assert len(tomllib.loads(file.read_text())) >= rules.count("# ") / 2
    kept = read_configuration(file)
    kept.pop("plans", None)
    assert CheckSettings(**kept) != CheckSettings()


def test_the_hook_is_one_of_this_project(tmp_path: Path) -> None:
    file = tmp_path / ".pre-commit-config.yaml"
    content = block_with("repos")
    file.write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", file],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert (done.returncode, "WARNING" in said) == (0, False), said
    (entry,) = content["repos"]
    manifest = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert {hook["id"] for hook in entry["hooks"]} <= {hook["id"] for hook in manifest}
    owner, _, tag = action_step()["uses"].partition("/hlscore@")
    assert (entry["repo"], entry["rev"]) == (f"https://github.com/{owner}/hlscore", tag)
