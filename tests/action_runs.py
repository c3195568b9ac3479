"""Runs the steps of `action.yml` as GitHub's runner does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
THIS_PYTHON = {"install": "false", "python": sys.executable}  # the hlscore under test
_CONDITION = re.compile(r"inputs\.([a-z-]+) != '([^']*)'")
_FILES = ("GITHUB_OUTPUT", "GITHUB_ENV", "GITHUB_PATH", "GITHUB_STEP_SUMMARY")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRun:
    """What a run of the Action came to."""

    code: int  # exit status of the step that failed, or 0
    log: str  # all that the steps printed
    summary: str  # what they wrote to the summary of the job
    steps: tuple[str, ...]  # names of the steps that ran

    @property
    def commands(self) -> list[str]:
        """The annotations: what GitHub takes for commands, and not what stands between stops."""
        found, token = [], None
        for line in self.log.splitlines():
            if token is not None:
                token = None if line == f"::{token}::" else token
            elif line.startswith("::stop-commands::"):
                token = line.removeprefix("::stop-commands::")
            elif line.startswith("::"):
                found.append(line)
        assert token is None
        return found


@cache
def metadata() -> dict[str, Any]:
    """What `action.yml` says."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    return content


def run_action(workspace: Path, runner: Path, given: Mapping[str, str]) -> ActionRun:
    """Run the Action until a step fails, each with `bash` and files for what it tells GitHub.

    Args:
        workspace: The checked out repository.
        runner: Folder for what the runner keeps outside of it.
        given: What a workflow gives with `with`.
    """
    inputs = {name: item["default"] for name, item in metadata()["inputs"].items()}
    assert set(given) <= set(inputs)
    inputs |= given
    (runner / "temp").mkdir(parents=True, exist_ok=True)
    known = {f"inputs.{name}": value for name, value in inputs.items()}
    log, summary, ran, code = "", "", [], 0
    for number, step in enumerate(metadata()["runs"]["steps"]):
        if "if" in step:
            condition = _CONDITION.fullmatch(step["if"])
            assert condition, step["if"]
            if inputs[condition[1]] == condition[2]:
                continue
        files = {name: runner / f"{number}-{name.lower()}" for name in _FILES}
        for file in files.values():
            file.write_text("")
        script = runner / f"{number}.sh"
        script.write_text(step["run"])
        assert step["shell"] == "bash"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", script],
            cwd=workspace,
            env=os.environ
            | {name: str(file) for name, file in files.items()}
            | {
                "CI": "true",
                "GITHUB_ACTIONS": "true",
                "GITHUB_ACTION_PATH": str(ROOT),
                "GITHUB_WORKSPACE": str(workspace),
                "RUNNER_TEMP": str(runner / "temp"),
            }
            | {name: filled(value, known) for name, value in step.get("env", {}).items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
        )
        ran.append(step["name"])
        log += done.stdout
        summary += files["GITHUB_STEP_SUMMARY"].read_text(encoding="utf-8")
        for line in files["GITHUB_OUTPUT"].read_text().splitlines():
            name, value = line.split("=", 1)
            known[f"steps.{step['id']}.outputs.{name}"] = value
        code = done.returncode
        if code:
            break
    return ActionRun(code=code, log=log, summary=summary, steps=tuple(ran))


def filled(text: str, known: Mapping[str, str]) -> str:
    """A text with its expressions replaced; one that is not known is an error."""
    return EXPRESSION.sub(lambda found: known[found[1]], text)


@cache
def index_answers() -> bool:
    """Whether pip can fetch a small package from wherever it is set up to fetch."""
    with TemporaryDirectory() as folder:
        options = ("--no-deps", "--no-cache-dir", "--retries", "0", "--timeout", "5")
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, "mdurl"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def need_index() -> None:
    """Skip a test that installs where nothing can be installed from."""
    if not index_answers():
        pytest.skip("pip reaches no package index here: the install steps cannot be run")
