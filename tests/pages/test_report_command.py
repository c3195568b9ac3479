"""`hlscore report` on real files: formats, refusals, what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from console import UNFINISHED, hlscore
from report_content import Page
from reports import report
from shown import save, save_plan

WITHOUT = """
import sys
for name in ("vl_convert", "altair"):
    sys.modules[name] = None  # Python finds no such module
from hlscore.cli.main import _run
sys.exit(_run())
"""

Files = tuple[Path, Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    plan = save_plan(report(20), tmp_path / "plan.json", budget="0.1")
    return save(report(20), tmp_path / "scores.parquet"), plan


@pytest.mark.parametrize(
    ("suffix", "start"),
    [("html", b"<!doctype html>"), ("png", b"\x89PNG"), ("svg", b"<svg"), ("md", b"# ")],
)
def test_every_format_is_written_and_the_same_twice(
    files: Files, tmp_path: Path, suffix: str, start: bytes
) -> None:
    target = tmp_path / f"report.{suffix}"
    found = hlscore("report", *files, "-o", target)
    assert found.code == 0, found.err
    for part in (f"report  {target}", "2 of 20 modules in full", "next"):
        assert part in found.out
    first = target.read_bytes()
    assert first.startswith(start)
    assert hlscore("report", *files, "-o", target, "--force").code == 0
    assert target.read_bytes() == first
    assert not list(tmp_path.glob(UNFINISHED))


def test_without_a_plan_one_is_made_and_the_page_says_so(files: Files, tmp_path: Path) -> None:
    target = tmp_path / "a.md"
    found = hlscore("report", files[0], "--budget", "0.3", "-o", target, "--json")
    assert json.loads(found.out)["full_modules"] == 6
    text = target.read_text()
    assert "No plan was given: this one was made for the page, with a budget of 0.3" in text
    hlscore("report", *files, "-o", target, "--force")
    assert "No plan was given" not in target.read_text()


def test_a_plan_orders_the_page_by_its_own_score(tmp_path: Path) -> None:
    found = report(20)
    rows = tuple(replace(row, taylor=float(place)) for place, row in enumerate(found.rows))
    turned = replace(found, rows=rows)
    scores = save(turned, tmp_path / "scores.parquet")
    plan = save_plan(turned, tmp_path / "plan.json", score="taylor", rank=8)
    assert hlscore("report", scores, plan).code == 0
    shown = Page((tmp_path / "report.html").read_text()).tables["modules"]
    assert shown[0][2] == "taylor"
    assert [cells[1] for cells in shown[1:21]] == [row.module for row in reversed(found.candidates)]
    assert shown[1][2] == "19"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("SCORES -o a.pdf", ".html, .png, .svg or .md"),
        ("SCORES -o a", ".html, .png, .svg or .md"),
        ("SCORES PLAN --budget 0.2", "Remove one of them"),
        ("SCORES --budget x", "x"),
        ("SCORES --budget 0.001", "less than one module"),
        ("SCORES -o folder.html", "directory"),
        ("SCORES PLAN -o scores.html --force", "is an input of the report"),
    ],
)
def test_wrong_usage_is_one_line(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    files[0].rename("scores.html")
    names = {"SCORES": "scores.html", "PLAN": "plan.json"}
    found = hlscore("report", *(names.get(word, word) for word in arguments.split()))
    assert found.code == 2
    assert said in found.message
    assert (tmp_path / "scores.html").read_bytes().startswith(b"PAR1")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("report", "."))]


@pytest.mark.parametrize("which", [0, 1])
def test_damaged_and_missing_files_give_one_line(files: Files, tmp_path: Path, which: int) -> None:
    given = list(files)
    given[which] = tmp_path / "missing"
    assert hlscore("report", *given).code == 3
    given[which].write_text("nonsense")
    for arguments in (given, files[::-1]):
        found = hlscore("report", *arguments)
        assert found.code == 3
        assert found.message


def test_a_report_without_candidates_is_refused(tmp_path: Path) -> None:
    empty = replace(report(3), rows=report(3).rows[-1:])
    found = hlscore("report", save(empty, tmp_path / "scores.parquet"))
    assert found.code == 3
    assert "no candidate modules" in found.message


def test_markdown_needs_no_extra_and_the_page_says_how_to_install_it(
    files: Files, tmp_path: Path
) -> None:
    def without_the_extra(name: str) -> subprocess.CompletedProcess[str]:
        words = ("report", *map(str, files), "-o", str(tmp_path / name))
        command = [sys.executable, "-c", WITHOUT, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    found = without_the_extra("a.html")
    assert (found.returncode, found.stdout) == (3, "")
    error, hint = found.stderr.splitlines()
    assert error.startswith("error: ")
    assert "pip install 'hlscore[report]'" in hint
    assert not (tmp_path / "a.html").exists()

    found = without_the_extra("a.md")
    assert found.returncode == 0, found.stderr
    assert hlscore("report", *files, "-o", tmp_path / "b.md").code == 0
    assert (tmp_path / "a.md").read_text() == (tmp_path / "b.md").read_text()


@pytest.mark.parametrize(
    ("suffix", "moment"), [("md", "hlscore.pages.page.render"), ("svg", "pathlib.Path.write_bytes")]
)
def test_ctrl_c_leaves_nothing(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, moment: str
) -> None:
    def interrupted(first: object, *_: object) -> bytes:
        if isinstance(first, Path):
            first.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, interrupted)
    target = tmp_path / f"a.{suffix}"
    assert hlscore("report", *files, "-o", target).code == 130
    assert not target.exists()
    assert not list(tmp_path.glob(UNFINISHED))
    target.write_text("old")
    assert hlscore("report", *files, "-o", target, "--force").code == 130
    assert target.read_text() == "old"
