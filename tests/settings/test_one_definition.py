"""An option is one field and a score is one entry: what a contributor adds is found everywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import hlscore

OPTION = (
    "settings/capture.py",
    "    batch_size: int",
    '    probe_note: int = option(3, "A number.", low=0, high=9)\n',
)
SCORE = (
    "scores/registry.py",
    "    Score(\n",
    '    Score(name="tail_density", formula="tail / parameters", unit="loss", source="a test",\n'
    "          compute=lambda row, rank: (_residual(row.tail_curve, row, rank) or 0)\n"
    "          / row.n_params,\n"
    '          ranks_column="curve_ranks"),\n',
)
READ = """
import inspect, json, sys
import hlscore
from hlscore.artifacts.plan_file import read_plan
from hlscore.settings import RankSettings, arguments

plan = read_plan(sys.argv[1])
keywords = inspect.signature(hlscore.rank).parameters
print(json.dumps({
    "keyword": str(keywords["probe_note"]),
    "documented": "    probe_note: A number." in hlscore.rank.__doc__,
    "score": plan.score.model_dump(),
    "stored": plan.provenance.settings["capture"]["probe_note"],
    "words": arguments(RankSettings, plan.provenance.settings),
}))
"""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one more option and one more score."""
    folder = tmp_path_factory.mktemp("scratch")
    shutil.copytree(
        Path(hlscore.__file__).parent, folder / "hlscore", ignore=shutil.ignore_patterns("*.pyc")
    )
    for file, before, added in (OPTION, SCORE):
        path = folder / "hlscore" / file
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, added + before, 1))
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_option_and_a_score_are_found_everywhere(scratch: Path) -> None:
    hlscore_ = ("-m", "hlscore")
    ranked = run(
        scratch, *hlscore_, "rank", "builtin:tiny", "--samples", "16", "--bootstrap", "0",
        "--probe-note", "5", "--score", "tail_density", "-o", "out",
    )  # fmt: skip
    assert ranked.returncode == 0, ranked.stderr
    assert "tail_density" in ranked.stdout
    table = pq.read_table(scratch / "out" / "scores.parquet")
    values = [value for value in table.column("tail_density").to_pylist() if value is not None]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0

    found = json.loads(run(scratch, "-c", READ, "out/plan.json").stdout)
    assert found["keyword"] == "probe_note: int = 3"
    assert found["documented"]
    assert found["score"] == {
        "name": "tail_density",
        "formula": "tail / parameters",
        "unit": "loss",
    }
    assert found["stored"] == 5
    assert " ".join(found["words"]).startswith("--score tail_density")
    assert "--probe-note 5" in " ".join(found["words"])

    assert "--probe-note" in run(scratch, *hlscore_, "rank", "--help").stdout
    assert "tail_density" in run(scratch, *hlscore_, "scores").stdout
    shown = run(scratch, *hlscore_, "show", "out/scores.parquet", "--sort", "tail_density").stdout
    assert "tail_density" in shown
    again = run(scratch, *hlscore_, "plan", "out/scores.parquet", "-o", "again.json")
    assert again.returncode == 0, again.stderr
    refused = run(scratch, *hlscore_, "rank", "builtin:tiny", "--probe-note", "10")
    assert refused.returncode == 2
    assert "--probe-note is 10" in refused.stderr
    assert "Use 0 to 9." in refused.stderr
