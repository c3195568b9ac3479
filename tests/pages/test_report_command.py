"""`hlscore report` on real files: formats, refusals, what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from console import UNFINISHED, hlscore
from report_content import planned, read_page, saved
from reports import report

from hlscore.artifacts.report import write_report

WITHOUT = """
import sys
for name in ("vl_convert", "altair"):
    sys.modules[name] = None  # Python finds no such module
from hlscore.cli.main import _run
sys.exit(_run())
"""

FORMATS = ("html", "png", "svg", "md")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return saved(tmp_path, report(20))


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_written_and_the_same_twice(
    files: tuple[Path, Path], tmp_path: Path, suffix: str
) -> None:
    target = tmp_path / f"report.{suffix}"
    found = hlscore("report", *files, "-o", target)
    assert found.code == 0, found.err
    assert f"report  {target}" in found.out
    assert "2 of 20 modules in full" in found.out
    assert "next" in found.out
    first = target.read_bytes()
    assert first.startswith({"html": b"<!doctype html>", "png": b"\x89PNG", "svg": b"<svg",
                             "md": b"# "}[suffix])  # fmt: skip
    assert hlscore("report", *files, "-o", target, "--force").code == 0
    assert target.read_bytes() == first
    assert not list(tmp_path.glob(UNFINISHED))


def test_without_a_plan_one_is_made_and_the_page_says_so(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    target = tmp_path / "a.md"
    found = hlscore("report", files[0], "--budget", "0.3", "-o", target, "--json")
    assert json.loads(found.out)["full_modules"] == 6
    text = target.read_text()
    assert "No plan was given: this one was made for the page, with a budget of 0.3" in text
    hlscore("report", *files, "-o", target, "--force")
    assert "No plan was given" not in target.read_text()


def test_a_plan_orders_the_page_by_its_own_score(tmp_path: Path) -> None:
    found = report(20)
    turned = replace(found, rows=tuple(
        replace(row, taylor=float(place)) for place, row in enumerate(found.rows)
    ))  # fmt: skip
    scores, plan = saved(tmp_path, turned, planned(turned, score="taylor", rank=8))
    assert hlscore("report", scores, plan).code == 0
    rows = read_page((tmp_path / "report.html").read_text()).tables["modules"]
    assert rows[0][2] == "taylor"
    assert [cells[1] for cells in rows[1:21]] == [row.module for row in reversed(found.candidates)]
    assert rows[1][2] == "19"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("SCORES", "-o", "a.pdf"), ".html, .png, .svg or .md"),
        (("SCORES", "-o", "a"), ".html, .png, .svg or .md"),
        (("SCORES", "PLAN", "--budget", "0.2"), "Remove one of them"),
        (("SCORES", "--budget", "x"), "x"),
        (("SCORES", "--budget", "0.001"), "less than one module"),
        (("SCORES", "-o", "folder.html"), "directory"),
    ],
)
def test_wrong_usage_is_one_line(
    files: tuple[Path, Path], tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    given = [
        {"SCORES": str(files[0]), "PLAN": str(files[1])}.get(
            item, str(tmp_path / item) if item.endswith(("html", "pdf", "a")) else item
        )
        for item in arguments
    ]
    found = hlscore("report", *given)
    assert found.code == 2
    assert said in found.message
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("report", "."))]


@pytest.mark.parametrize("which", [0, 1])
def test_damaged_and_missing_files_give_one_line(
    files: tuple[Path, Path], tmp_path: Path, which: int
) -> None:
    given: list[Path] = list(files)
    given[which] = tmp_path / "missing"
    assert hlscore("report", *given).code == 3
    given[which].write_text("nonsense")
    found = hlscore("report", *given)
    assert found.code == 3
    assert found.message
    swapped = hlscore("report", files[1], files[0])
    assert swapped.code == 3
    assert swapped.message


def test_a_report_without_candidates_is_refused(tmp_path: Path) -> None:
    scores = tmp_path / "scores.parquet"
    write_report(replace(report(3), rows=report(3).rows[-1:]), scores)
    found = hlscore("report", scores)
    assert found.code == 3
    assert "no candidate modules" in found.message


def test_the_output_is_not_the_input(files: tuple[Path, Path], tmp_path: Path) -> None:
    odd = tmp_path / "scores.html"
    files[0].rename(odd)
    found = hlscore("report", odd, "-o", odd, "--force")
    assert found.code == 2
    assert "is an input of the report" in found.message
    assert odd.read_bytes().startswith(b"PAR1")


def without_the_extra(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the command line where the libraries of the extra cannot be found."""
    command = [sys.executable, "-c", WITHOUT, "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_one_line_says_how_to_install_the_extra(files: tuple[Path, Path], tmp_path: Path) -> None:
    found = without_the_extra(*files, "-o", tmp_path / "a.html")
    assert found.returncode == 3
    said = found.stderr.splitlines()
    assert len(said) == 2
    assert said[0].startswith("error: ")
    assert "pip install 'hlscore[report]'" in said[1]
    assert found.stdout == ""
    assert not (tmp_path / "a.html").exists()


def test_markdown_needs_no_extra(files: tuple[Path, Path], tmp_path: Path) -> None:
    found = without_the_extra(*files, "-o", tmp_path / "a.md")
    assert found.returncode == 0, found.stderr
    assert hlscore("report", *files, "-o", tmp_path / "b.md").code == 0
    assert (tmp_path / "a.md").read_text() == (tmp_path / "b.md").read_text()


@pytest.mark.parametrize(("suffix", "moment"), [("md", "render"), ("svg", "write")])
def test_ctrl_c_leaves_nothing(
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    moment: str,
) -> None:
    def interrupted(first: object, *_: object) -> bytes:
        if moment == "write":
            assert isinstance(first, Path)
            first.write_text("half")
        raise KeyboardInterrupt

    place = {"render": "hlscore.pages.page.render", "write": "pathlib.Path.write_bytes"}
    monkeypatch.setattr(place[moment], interrupted)
    target = tmp_path / f"a.{suffix}"
    found = hlscore("report", *files, "-o", target)
    assert found.code == 130
    assert not target.exists()
    assert not list(tmp_path.glob(UNFINISHED))
    target.write_text("old")
    assert hlscore("report", *files, "-o", target, "--force").code == 130
    assert target.read_text() == "old"
