"""`hlscore report` as it is installed without its extra, and when it is interrupted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from console import UNFINISHED, hlscore
from report_content import saved
from reports import report

WITHOUT = """
import sys
for name in ("vl_convert", "altair"):
    sys.modules[name] = None  # Python finds no such module
from hlscore.cli.main import _run
sys.exit(_run())
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return saved(tmp_path, report(20))


def without_the_extra(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the command line where the libraries of the extra cannot be found."""
    command = [sys.executable, "-c", WITHOUT, "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("suffix", ["html", "png", "svg"])
def test_one_line_says_how_to_install_the_extra(
    files: tuple[Path, Path], tmp_path: Path, suffix: str
) -> None:
    found = without_the_extra(*files, "-o", tmp_path / f"a.{suffix}")
    assert found.returncode == 3
    said = found.stderr.splitlines()
    assert len(said) == 2
    assert said[0].startswith("error: ")
    assert "pip install 'hlscore[report]'" in said[1]
    assert found.stdout == ""
    assert not (tmp_path / f"a.{suffix}").exists()


def test_markdown_needs_no_extra(files: tuple[Path, Path], tmp_path: Path) -> None:
    found = without_the_extra(*files, "-o", tmp_path / "a.md")
    assert found.returncode == 0, found.stderr
    assert hlscore("report", *files, "-o", tmp_path / "b.md").code == 0
    assert (tmp_path / "a.md").read_text() == (tmp_path / "b.md").read_text()


def test_a_folder_that_is_missing_is_made(files: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.svg"
    assert hlscore("report", *files, "-o", target).code == 0
    assert target.read_bytes().startswith(b"<svg")
    below_a_file = files[0] / "a.md"
    assert hlscore("report", *files, "-o", below_a_file).code in (2, 3)


@pytest.mark.parametrize("suffix", ["html", "png", "md"])
@pytest.mark.parametrize("moment", ["render", "write"])
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
            first.write_bytes(b"half")
        raise KeyboardInterrupt

    place = {"render": "hlscore.pages.formats.render", "write": "hlscore.cli.report_command._write"}
    monkeypatch.setattr(place[moment], interrupted)
    target = tmp_path / f"a.{suffix}"
    found = hlscore("report", *files, "-o", target)
    assert found.code == 130
    assert not target.exists()
    assert not list(tmp_path.glob(UNFINISHED))
    target.write_text("old")
    assert hlscore("report", *files, "-o", target, "--force").code == 130
    assert target.read_text() == "old"
