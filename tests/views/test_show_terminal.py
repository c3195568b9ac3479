"""What `hlscore show` does to terminals: hostile names, narrow ones, colour, pipes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from console import hlscore
from report_content import HOSTILE, planned
from reports import report
from shown import commands, printed, renamed, save, table, told, unstyled

from hlscore.artifacts.plan_file import write_plan

NAMES = (
    *HOSTILE,
    "[red]x[/red].q_proj",
    "[/]",
    "[link=https://evil.example]a[/link]",
    ":smile:.:boom:",
    "模型.层.注意力",
    "模" * 60,
    "x" * 300,
    ".".join(["part"] * 60),
    "'; rm -rf ~ #$(id)`id`",
    "--help",
)
STEERING = ("a\x1b[31mred", "a\nb", "a\rb", "a\x07", "a\u202eb", "a\x9b31m", "a\tb", "a\u2028b")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("show")
    found = renamed(report(len(NAMES) + 2), NAMES)
    write_plan(planned(found), folder / "plan.json")
    return save(found, folder / "scores.parquet"), folder / "plan.json"


def colours(text: str) -> set[int]:
    """Codes that set a colour of letters or ground; bold and dim are none."""
    styles = re.findall(r"\x1b\[([0-9;]*)m", text)
    codes = {int(code) for style in styles for code in style.split(";") if code}
    return {code for code in codes if code >= 30}


def test_names_are_printed_as_they_are_with_and_without_colour(
    hostile: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    for path in hostile:
        every = printed("show", path, "--top", "all")
        for name in NAMES:
            assert re.search(rf"^ *(-|\d+) {re.escape(name)} ", every, re.MULTILINE), name
        for options in (["--top", "all"], ["--module", NAMES[0]]):
            plain = printed("show", path, *options)
            with monkeypatch.context() as patch:
                for name in ("NO_COLOR", "COLORTERM"):
                    patch.delenv(name, raising=False)
                patch.setenv("FORCE_COLOR", "1")
                patch.setenv("TERM", "xterm-256color")
                coloured = printed("show", path, *options)
                patch.setenv("NO_COLOR", "1")
                uncoloured = printed("show", path, *options)
            assert colours(coloured)
            assert not colours(uncoloured)
            assert "\x1b" not in plain
            assert unstyled(coloured) == unstyled(uncoloured) == plain


def test_commands_hold_for_a_shell(tmp_path: Path) -> None:
    for name in NAMES[len(HOSTILE) - 4 :: 3]:
        path = save(renamed(report(12), [name]), tmp_path / "it's.parquet")
        first = commands(printed("show", path))[0]
        assert hlscore(*shlex.split(first)[1:]).out.startswith(f"{name}\n")


@pytest.mark.parametrize("text", STEERING)
def test_names_that_would_steer_the_terminal_are_refused(tmp_path: Path, text: str) -> None:
    scores = save(renamed(report(12), [text]), tmp_path / "scores.parquet")
    document = json.loads(planned(report(12)).model_dump_json())
    plans = []
    for number, change in enumerate((
        lambda plan: plan["modules"][3].update(module=text, parameter=f"{text}.weight"),
        lambda plan: plan["modules"][3].update(kind=text),
        lambda plan: plan["score"].update(name=text),
    )):  # fmt: skip
        changed = json.loads(json.dumps(document))
        change(changed)
        plans.append(tmp_path / f"plan-{number}.json")
        plans[-1].write_text(json.dumps(changed))
    for path in (scores, *plans):
        for options in ([], ["--json"], ["-m", "x"], ["--sort", "x"]):
            found = hlscore("show", path, *options)
            assert not set(found.out + found.err) & set("\x1b\r\x07\u202e\x9b\u2028\t"), path
            if found.code:
                assert found.message
            else:
                assert path == plans[1]


def test_a_path_that_would_steer_the_terminal(tmp_path: Path) -> None:
    for name in ("a\x1b[31m.json", "a\nb.json"):
        path = tmp_path / name
        write_plan(planned(report(12)), path)
        out = printed("show", path)
        assert "\x1b" not in out
        assert len(commands(out)) == 2
        assert told("show", path)["file"] == str(path)


@pytest.mark.parametrize("width", [20, 80])
def test_nothing_is_cut_at_any_width(
    scores: Path, plan: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    for path in (scores, plan):
        monkeypatch.setenv("COLUMNS", "300")
        wide = printed("show", path, "--top", "all")
        one = printed("show", path, "--module", "0.mlp.down_proj")
        monkeypatch.setenv("COLUMNS", str(width))
        out = printed("show", path, "--top", "all")
        assert "…" not in out
        assert table(out) == table(wide)
        assert printed("show", path, "--module", "0.mlp.down_proj") == one
        assert out.split()[-20:] == wide.split()[-20:]


def test_a_terminal_of_plain_letters(scores: Path, plan: Path) -> None:
    plain = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "COLUMNS": "80"}
    for arguments, patterns in (
        ([plan], [r"^\. no signal  - \+ \* # rising hls  F trained in full$", "^q_proj +#F"]),
        ([scores, "-m", "0.mlp.down_proj"], [r"^tail #[*+=,_.-]{4}  rank 0 to 16$"]),
    ):
        ran = subprocess.run(
            [sys.executable, "-m", "hlscore", "show", *map(str, arguments)],
            capture_output=True, env={**os.environ, **plain}, check=False,
        )  # fmt: skip
        assert (ran.returncode, ran.stderr) == (0, b"")
        for pattern in patterns:
            assert re.search(pattern, ran.stdout.decode("ascii"), re.MULTILINE), pattern


@pytest.mark.parametrize("name", STEERING)
def test_error_writes_a_hostile_path_out(name: str) -> None:
    message = hlscore("show", name).message
    assert name not in message
    assert name.encode("unicode_escape").decode() in message
