"""An option is one field and a score is one entry: what a contributor adds is found everywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

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
# Commands run in one process of the scratch copy, and what each printed.
CALL = """
import contextlib, inspect, io, json, sys
import hlscore
from hlscore.artifacts.plan_file import read_plan
from hlscore.cli.main import _run
from hlscore.settings import RankSettings, arguments

printed = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["hlscore", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = _run()
    printed.append([code, out.getvalue()])
plan = read_plan("out/plan.json")
json.dump({
    "printed": printed,
    "keyword": str(inspect.signature(hlscore.rank).parameters["probe_note"]),
    "documented": "    probe_note: A number." in hlscore.rank.__doc__,
    "score": plan.score.model_dump(),
    "stored": plan.provenance.settings["capture"]["probe_note"],
    "words": arguments(RankSettings, plan.provenance.settings),
}, sys.stdout)
"""
COMMANDS = (
    "rank builtin:tiny --samples 16 --bootstrap 0 --probe-note 5 --score tail_density -o out",
    "show out/scores.parquet --sort tail_density",
    "plan out/scores.parquet -o again.json",
    "rank --help",
    "scores",
    "rank builtin:tiny --probe-note 10",
)


def test_an_option_and_a_score_are_found_everywhere(tmp_path: Path) -> None:
    """In a copy of the package with one more option and one more score."""
    shutil.copytree(
        Path(hlscore.__file__).parent, tmp_path / "hlscore", ignore=shutil.ignore_patterns("*.pyc")
    )
    for file, before, added in (OPTION, SCORE):
        path = tmp_path / "hlscore" / file
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, added + before, 1))
    done = subprocess.run(
        [sys.executable, "-c", CALL, json.dumps([command.split() for command in COMMANDS])],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ranked, shown, planned, help_, scores, refused = found["printed"]
    assert [ranked[0], shown[0], planned[0], help_[0], scores[0]] == [0] * 5, found["printed"]
    assert all("tail_density" in text for _, text in (ranked, shown, scores))
    assert "--probe-note" in help_[1]
    assert refused[0] == 2
    assert "--probe-note is 10" in refused[1]
    assert "Use 0 to 9." in refused[1]

    table = pq.read_table(tmp_path / "out" / "scores.parquet")
    values = [value for value in table.column("tail_density").to_pylist() if value is not None]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0
    assert found["keyword"] == "probe_note: int = 3"
    assert found["documented"]
    expected = {"name": "tail_density", "formula": "tail / parameters", "unit": "loss"}
    assert found["score"] == expected
    assert found["stored"] == 5
    assert " ".join(found["words"]).startswith("--score tail_density")
    assert "--probe-note 5" in " ".join(found["words"])
