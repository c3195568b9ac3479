"""What the Action and the pre-commit hook install is what `hlscore check` imports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from broken_plans import made, write
from newest import NEWEST
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hlscore.exporters.exporter import exporter_names

pytestmark = NEWEST
ROOT = Path(__file__).parents[2]
FILE = ROOT / ".ci" / "check-requirements.txt"
PIN = re.compile(r"([A-Za-z0-9._-]+)==\S+")
SCRIPT = """
import json, sys

missing, folder, lines = json.loads(sys.argv[1])


class Missing:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())
sys.path.insert(0, folder)
from hlscore.cli.main import main

for words in lines:
    sys.argv = ["hlscore", "check", *words]
    try:
        main()
    except SystemExit as stop:
        assert stop.code in (0, 1), (words, stop.code)
import action_summary
"""


def named() -> set[str]:
    lines = FILE.read_text().splitlines()
    return {canonicalize_name(line) for line in lines if line and line[0] not in "#-"}


def test_each_has_a_pin_none_is_heavy_and_what_it_needs_is_named() -> None:
    assert not named() & {"torch", "transformers", "pyarrow"}
    assert "-c ../constraints.txt" in FILE.read_text().splitlines()
    pinned = PIN.findall((ROOT / "constraints.txt").read_text())
    assert named() <= {canonicalize_name(name) for name in pinned}
    for name in named():
        needs = map(Requirement, requires(name) or ())
        here = [need for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
        assert {canonicalize_name(need.name) for need in here} <= named(), name


def test_no_rule_and_no_format_needs_more(tmp_path: Path) -> None:
    plan = str(write(made(), tmp_path / "plan.json"))
    rules = ["--max-borderline", "3", "--min-selection-probability", "0.5", "--max-age", "9w",
             "--max-drift", "minor", "--baseline", plan, "--max-changed", "3",
             "--min-overlap", "0.5", "--min-tau", "0.5"]  # fmt: skip
    rules += [f"--for={name}" for name in exporter_names()]
    forms = ("text", "json", "github", "junit", "sarif")
    lines = [
        *([plan, *rules, "--format", form] for form in forms),
        ["--explain", "all"],
        ["--help"],
    ]
    for without in (None, "numpy", "pydantic"):
        packages = {"hlscore", *named()} - {without}
        missing = [
            module for module, owners in packages_distributions().items()
            if not packages & {canonicalize_name(owner) for owner in owners}
        ]  # fmt: skip
        given = json.dumps([missing, str(ROOT / ".ci"), lines])
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, given],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert (done.returncode == 0) == (without is None), (without, done.stderr)
        if without is None:
            assert "failed" in done.stdout, "the rules were applied"
