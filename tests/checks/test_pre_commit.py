"""The pre-commit hooks, run by pre-commit in a repository with plans."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from action_runs import ROOT, need_index
from broken_plans import broken, git, made, write

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
MANIFEST = ROOT / ".pre-commit-hooks.yaml"
SKIPPED = {".git", "tests", "benchmarks"}


def repository(folder: Path) -> str:
    """Put a folder under git; returns the commit."""
    git(folder, "init", "--quiet")
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--no-verify", "-m", "all")
    return git(folder, "rev-parse", "HEAD").strip()


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """This project as it lies here, committed: what a `.pre-commit-config.yaml` names."""
    folder = tmp_path_factory.mktemp("hooks") / "hlscore"
    shutil.copytree(
        ROOT,
        folder,
        ignore=lambda parent, names: [
            name for name in names
            if (Path(parent) == ROOT and name in SKIPPED) or name == "__pycache__"
            or re.fullmatch(r"\..*_cache|\.venv.*|\.hypothesis|hlscore-out", name)
        ],
    )  # fmt: skip
    return {"repo": str(folder), "rev": repository(folder)}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with plans of several names, and files that are none."""
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "pre-commit"))
    folder = tmp_path / "workspace"
    for name in ("plan.json", "a/plan.json", "a/plan-20.json", "--out=b/plan.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(made(), folder / name)
    for name in ("planets.json", "package.json", "plan.yaml", "a/my-plan.json"):
        (folder / name).write_text("{}\n")
    return folder


def run(workspace: Path, hooks: dict[str, Any], hook: str, **more: object) -> tuple[int, str]:
    config = {"repos": [hooks | {"hooks": [{"id": hook, "verbose": True} | more]}]}
    (workspace / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    repository(workspace)
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--all-files", "--color=never"],
        cwd=workspace, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_manifest_is_valid() -> None:
    subprocess.run([sys.executable, "-m", "pre_commit", "validate-manifest", MANIFEST], check=True)


def test_plans_are_checked_at_once(workspace: Path, hooks: dict[str, Any]) -> None:
    code, out = run(workspace, hooks, "hlscore-check-system")
    assert code == 0, out
    checked = re.findall(r"^passed  (.*?): ", out, re.MULTILINE)
    assert sorted(checked) == ["--out=b/plan.json", "a/plan-20.json", "a/plan.json", "plan.json"]
    assert not (workspace / "b").exists(), "a name is no option"


def test_a_broken_plan_stops_the_commit(workspace: Path, hooks: dict[str, Any]) -> None:
    write(broken(), workspace / "a" / "plan-$(touch pwned).json")
    code, out = run(workspace, hooks, "hlscore-check-system")
    assert code == 1
    assert "Failed" in out
    assert "- exit code: 1" in out
    assert re.search(r"^a/plan-\$\(touch pwned\)\.json:\d+:\d+: error HLS206 ", out, re.MULTILINE)
    assert "passed  plan.json: " in out
    assert not list(workspace.rglob("pwned"))


def test_rules_come_from_the_repository_and_from_args(
    workspace: Path, hooks: dict[str, Any]
) -> None:
    document = made()
    document["modules"][11]["alpha"] = 99
    write(document, workspace / "plan.json")
    assert run(workspace, hooks, "hlscore-check-system")[0] == 0
    assert run(workspace, hooks, "hlscore-check-system", args=["--strict", "--"])[0] == 1
    (workspace / "hlscore-check.toml").write_text("strict = true\n")
    assert run(workspace, hooks, "hlscore-check-system")[0] == 1


def test_the_hook_that_installs_itself(workspace: Path, hooks: dict[str, Any]) -> None:
    need_index()
    code, out = run(workspace, hooks, "hlscore-check")
    assert code == 0, out
    assert out.count("passed  ") == 4
    packages = {path.name for path in workspace.parent.glob("pre-commit/**/site-packages/*")}
    assert "hlscore" in packages
    assert not packages & {"torch", "transformers", "pyarrow", "pandas"}
    write(broken(), workspace / "plan.json")
    code, out = run(workspace, hooks, "hlscore-check")
    assert code == 1
    assert "plan.json:" in out
    assert "error HLS206" in out
