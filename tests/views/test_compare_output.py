"""What `hlscore compare` prints: hostile names, narrow terminals, colour, errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from compared import (
    HOSTILE,
    check_width,
    noisy,
    printed,
    refused,
    save,
    save_plan,
    shown,
    told,
)
from console import hlscore

from hlscore.records import ScoreReport

COUNT = 35
SENTENCES = ("share of", "mean tau within", "resamples:", "kind and size", "over modules")


@pytest.fixture(scope="module")
def runs() -> tuple[ScoreReport, ...]:
    return tuple(noisy(COUNT, seed) for seed in (1, 2, 3))


@pytest.fixture(scope="module")
def files(
    runs: Sequence[ScoreReport], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("runs")
    return tuple(save(run, folder / f"seed-{run.run.seed}" / "scores.parquet") for run in runs)


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_as_text_and_nothing_is_cut(
    runs: Sequence[ScoreReport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    width: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    paths = [
        save(runs[0], tmp_path / HOSTILE[name] / "s"),
        save(runs[1], tmp_path / "plain" / "s"),
    ]
    text = printed("compare", *paths, "--within-kinds")
    assert all(line.isprintable() for line in text.splitlines())
    assert "…" not in text
    assert re.sub(r"\s", "", shown(HOSTILE[name])) in re.sub(r"\s", "", text)
    found = told("compare", *paths)
    assert found["files"][0]["label"] == HOSTILE[name]
    for value in (found["agreement"][0][1]["tau"], found["rankings"][0]["resampled_tau"]):
        assert f"{value:z.2f}" in text
    assert text.count("resamples\n") >= 1
    check_width(text, width, sentences=SENTENCES)


@pytest.mark.parametrize("width", [40, 80])
def test_wide_matrices_come_in_parts(
    runs: Sequence[ScoreReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    paths = [save(runs[at % 3], tmp_path / f"number-{at}" / "s") for at in range(13)]
    text = printed("compare", *paths)
    check_width(text, width, sentences=SENTENCES)
    tau = text.partition("Kendall's tau\n")[2].partition("\nshare")[0]
    headings = " ".join(line for line in tau.splitlines() if line.startswith(" ")).split()
    assert [word for word in headings if word != "resamples"] == [
        f"number-{at}" for at in range(13)
    ]
    assert sum(line.count(" - ") for line in tau.splitlines()) == 13


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--score", "nope"], ["There is no score 'nope'", "hls, tail"]),
        (["--score", "[red]"], ["There is no score '[red]'"]),
        (["--score", "tail"], ["All scores of one run are compared"]),
        (["--rank", "7"], ["no score for rank 7", "2, 4, 8, 16"]),
        (["--rank", "0"], ["--rank is 0", "1 to 8192"]),
        (["--rank", "-4"], ["--rank is -4"]),
        (["--rank", "99999999999"], ["--rank is 99999999999"]),
        (["--ranks", "4"], ["one rank"]),
        (["--ranks", "4,4"], ["one rank"]),
        (["--ranks", "0,4"], ["--ranks is 0,4", "1 to 8192"]),
        (["--ranks", "4,5"], ["no score for rank 5"]),
        (["--ranks", "4,x"], ["--ranks is '4,x'"]),
        (["--ranks", ""], ["--ranks is ''"]),
        (["--ranks", "2,8", "--rank", "4"], ["are mutually exclusive"]),
        (["--ranks", "2,8", "--score", "kappa"], ["same at every LoRA rank", "hls, tail"]),
        (["--top-k", "0"], ["--top-k is '0'"]),
        (["--top-k", "0%"], ["--top-k is '0%'"]),
        (["--top-k", "101%"], ["--top-k is '101%'"]),
        (["--top-k", "-1"], ["--top-k is '-1'"]),
        (["--top-k", "\u0661"], ["--top-k is"]),
        (["--top-k", ""], ["--top-k is ''"]),
        (["--top-k", "36"], ["--top-k is 36", "35 modules"]),
    ],
    ids=lambda item: "=".join(item) if item and item[0].startswith("--") else "",
)
def test_wrong_usage(files: Sequence[Path], options: list[str], parts: list[str]) -> None:
    refused(hlscore("compare", files[0], *options), 2, *parts)


def test_ranks_are_of_one_run(files: Sequence[Path]) -> None:
    refused(hlscore("compare", *files, "--ranks", "4,8"), 2, "LoRA ranks of one run")
    found = hlscore("compare", *files, "--rank", "7")
    refused(found, 2, f"'{files[0]}': The report holds no score for rank 7")


@pytest.mark.parametrize("place", [0, 1])
def test_files_that_are_no_scores(files: Sequence[Path], tmp_path: Path, place: int) -> None:
    whole = files[0].read_bytes()
    contents = {
        "text": b"hello", "empty": b"", "magic": b"PAR1", "cut": whole[: len(whole) // 2],
        "end": whole[:-1], "json": b"{}", "list": b"[1]", "binary": bytes(range(256)),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "two\nlines\x1b[31m").write_bytes(b"hello")
    for name in [*contents, "two\nlines\x1b[31m", "missing", "."]:
        given = [files[1], files[1]]
        given[place] = tmp_path / name
        refused(hlscore("compare", *given), 3)
        refused(hlscore("compare", given[place]), 3)
    plan = save_plan(noisy(7, 1), tmp_path / "plan.json")
    refused(hlscore("compare", plan, files[0]), 2, "is a plan", "hlscore diff")
