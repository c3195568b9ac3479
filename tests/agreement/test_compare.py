"""`hlscore compare`: figures against slow ones, what is compared with what, what it prints."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from compared import (
    NO_SCORES,
    ONE,
    RUN_RANK,
    SCORES,
    Document,
    Values,
    check_width,
    close,
    noisy,
    refused,
    slow_resampled_tau,
    slow_tau,
    values_of,
)
from console import hlscore
from shown import printed, renamed, save, save_plan, told

from hlscore.records import ScoreReport

COUNT = 35
Runs = Sequence[ScoreReport]
Files = Sequence[Path]
HOSTILE = (  # names that could steer a terminal, or do not fit it
    "[bold red]run[/] :smile:", "\x1b[31mred\x1b[0m", "two\nlines", "層注意力" * 8, "long-" * 40,
    "a\u202eb",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs() -> Runs:
    return [noisy(COUNT, seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def files(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("runs")
    return [save(run, folder / f"seed-{run.run.seed}" / "scores.parquet") for run in runs]


def check_matrices(found: Document, rankings: Sequence[Values], top: int) -> None:
    """Hold every figure of a comparison against scipy, sets and sorting."""
    names = sorted(set.intersection(*(set(values) for values in rankings)))
    lists = [[values[name] for name in names] for values in rankings]
    assert found["modules"] == len(names)
    assert found["top"]["modules"] == top
    assert found["top"]["by_chance"] == top / len(names)
    for i, x in enumerate(lists):
        for j, y in enumerate(lists):
            agreement = found["agreement"][i][j]
            assert agreement["tau"] == close(slow_tau(x, y)), (i, j)
            pairs = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
            assert agreement["n"] == len(pairs)
            if agreement["low"] is not None:
                assert -1 <= agreement["low"] <= agreement["tau"] <= agreement["high"] <= 1
            first, second = (
                set(sorted(range(len(pairs)), key=lambda at: -pairs[at][side])[:top])
                for side in (0, 1)
            )
            overlap, union = len(first & second) / top, len(first | second)
            assert found["top"]["overlap"][i][j] == close(overlap), (i, j)
            assert found["top"]["jaccard"][i][j] == close(len(first & second) / union)


def slow_within(report: ScoreReport, x: Values, y: Values) -> float:
    """Mean tau within kinds, each kind as often as it has modules."""
    weighed: list[float] = []
    kinds = {row.module: (row.block, row.kind) for row in report.candidates}
    for kind in set(kinds.values()):
        own = [name for name in x if kinds[name] == kind]
        tau = slow_tau([x[name] for name in own], [y[name] for name in own])
        weighed += [] if tau is None else [tau] * len(own)
    return sum(weighed) / len(weighed)


def test_all_scores_of_one_run(runs: Runs, files: Files) -> None:
    found = told("compare", files[0], "--within-kinds")
    assert [item["label"] for item in found["rankings"]] == list(SCORES)
    assert {item["rank"] for item in found["rankings"]} == {RUN_RANK}
    rankings = [values_of(runs[0], score) for score in SCORES]
    check_matrices(found, rankings, COUNT // 10)
    for i, x in enumerate(rankings):
        for j, y in enumerate(rankings):
            assert found["within_kinds"][i][j] == close(slow_within(runs[0], x, y))
    assert found["without_values"] == []
    other = told("compare", files[0], "--rank", "16")
    check_matrices(other, [values_of(runs[0], score, 16) for score in SCORES], COUNT // 10)
    assert other["within_kinds"] is None

    # Resamples agree as disjoint pairs of them do; they are for the run's own rank.
    own = {item["score"]: item["resampled_tau"] for item in found["rankings"]}
    rows = runs[0].candidates
    for score in ("hls", "tail", "grad_norm"):
        wanted = slow_resampled_tau([getattr(row, f"{score}_replicates") for row in rows])
        assert own[score] == pytest.approx(wanted, abs=1e-6)
    relative = [
        [math.sqrt(max(value, 0)) / (row.weight_norm or 1) for value in row.grad_norm_replicates]
        for row in rows
    ]
    assert own["rgn"] == pytest.approx(slow_resampled_tau(relative), abs=1e-6)
    without = {score for score, tau in own.items() if tau is None}
    assert without == set(SCORES[3:]) - {"rgn", "hls_share"}
    by_score = {item["score"]: item["resampled_tau"] for item in other["rankings"]}
    assert by_score["hls"] is by_score["tail"] is None
    assert by_score["grad_norm"] == own["grad_norm"]


@pytest.mark.parametrize("score", [None, "l1_adam", "spectral"])
def test_ranks_of_one_score(runs: Runs, files: Files, score: str | None) -> None:
    chosen = [] if score is None else ["--score", score]
    found = told("compare", files[1], "--ranks", "16, 2,8", *chosen)
    assert [item["label"] for item in found["rankings"]] == ["rank 2", "rank 8", "rank 16"]
    rankings = [values_of(runs[1], score or "hls", rank) for rank in (2, 8, 16)]
    check_matrices(found, rankings, COUNT // 10)


@pytest.mark.parametrize(
    ("options", "score", "rank", "top"),
    [
        ([], "hls", RUN_RANK, 3),
        (["-r", "2", "--score", "tail", "--top-k", "100%"], "tail", 2, 35),
        (["--score", "rgn", "--top-k", "1"], "rgn", RUN_RANK, 1),
        (["--top-k", "0.2"], "hls", RUN_RANK, 7),
        (["--top-k", "0.1%"], "hls", RUN_RANK, 1),
        (["--top-k", "29%"], "hls", RUN_RANK, 10),
    ],
)
def test_runs(
    runs: Runs, files: Files, options: list[str], score: str, rank: int, top: int
) -> None:
    found = told("compare", *files, *options)
    assert [item["label"] for item in found["rankings"]] == ["seed-1", "seed-2", "seed-3"]
    assert {(item["score"], item["rank"]) for item in found["rankings"]} == {(score, rank)}
    check_matrices(found, [values_of(run, score, rank) for run in runs], top)
    facts = {fact["name"]: fact for fact in found["facts"]}
    assert facts["seed"] == {"name": "seed", "values": [1, 2, 3], "same": False}
    assert facts["model"] == {"name": "model", "values": ["org/model"] * 3, "same": True}
    assert [item["path"] for item in found["files"]] == [str(path) for path in files]


def test_every_run_counts_by_its_own_score_and_rank(tmp_path: Path) -> None:
    one, two = noisy(14, 1), noisy(14, 2)
    two = replace(two, run=replace(two.run, score="tail", rank=8))
    paths = [save(run, tmp_path / name / "s") for name, run in (("one", one), ("two", two))]
    found = told("compare", *paths)
    check_matrices(found, [values_of(one, "hls", 4), values_of(two, "tail", 8)], 1)
    notes = hlscore("compare", *paths).notes
    assert "different scores; --score NAME compares one" in notes[0]
    assert "different LoRA ranks; --rank N compares one" in notes[1]
    assert hlscore("compare", *paths, "--score", "hls", "--rank", "4").notes == []


def test_settings_that_differ_are_shown_by_their_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run, paths = noisy(7, 1), []
    for place in (0, 1):
        settings = {"seed": 0, "weight_scores": bool(place), "capture": {"bootstrap": 9 + place}}
        changed = replace(run, run=replace(run.run, settings=settings))
        paths.append(save(changed, tmp_path / str(place) / "s"))
    text = printed("compare", *paths)
    assert re.search("--weight-scores False · --bootstrap 9 *\n", text)
    assert re.search("--weight-scores True · --bootstrap 10 *\n", text)
    names = {fact["name"]: fact["values"] for fact in told("compare", *paths)["facts"]}
    assert names["capture.bootstrap"] == [9, 10]
    assert re.search(r"^--bootstrap +9 +10 *$", printed("diff", *paths, "-b", "0.5"), re.MULTILINE)


def test_printed_figures_are_those_of_json(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = told("compare", *files, "--within-kinds")
    text = printed("compare", *files, "--within-kinds")
    taus = [[pair["tau"] for pair in row] for row in found["agreement"]]
    own = [[item["resampled_tau"]] for item in found["rankings"]]
    wanted = [
        [label, *("-" if at == to else f"{matrix[at][to]:z.2f}" for to in range(3)),
         *(f"{value:.2f}" for value in more[at])]
        for matrix, more in (
            (taus, own), (found["top"]["overlap"], [[]] * 3), (found["within_kinds"], [[]] * 3),
        )
        for at, label in enumerate(("seed-1", "seed-2", "seed-3"))
    ]  # fmt: skip
    tables = re.findall(r"^(seed-\d .*)$", text, re.MULTILINE)
    assert [line.split() for line in tables] == wanted
    assert "org/model · hls of 3 runs at LoRA rank 4 · 35 modules" in text
    widest = max(
        (pair["high"] - pair["low"]) / 2
        for i, row in enumerate(found["agreement"])
        for pair in row[i + 1 :]
    )
    assert f"known to ± {widest:.2f} or better" in text


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ("a/scores.parquet b/scores.parquet", ["a", "b"]),
        ("a/one.parquet a/two.parquet", ["one.parquet", "two.parquet"]),
        ("x/a/s x/b/s y/a/s", ["x/a", "x/b", "y/a"]),
        ("a/s a/s b/s", ["a (1)", "a (2)", "b"]),
        ("a/s a/b/s", ["s", "b/s"]),
    ],
)
def test_labels_tell_files_apart(runs: Runs, tmp_path: Path, names: str, labels: list[str]) -> None:
    paths = [save(runs[0], tmp_path / name) for name in names.split()]
    assert [item["label"] for item in told("compare", *paths)["files"]] == labels


def test_a_run_agrees_with_itself(files: Files) -> None:
    found = told("compare", files[0], files[0])
    assert [[pair["tau"] for pair in row] for row in found["agreement"]] == [[1, 1], [1, 1]]
    assert found["top"]["overlap"] == found["top"]["jaccard"] == [[1, 1], [1, 1]]
    assert found["same_structure"] is True
    assert printed("compare", files[0], files[0]).count("nothing that is known") == 2


def test_scores_that_are_missing_are_told(tmp_path: Path) -> None:
    """A sketch has no `taylor`; a weight of zeros has no `rgn` and no `snr`."""
    run = noisy(21, 5, taylor=None)
    run = replace(run, rows=(replace(run.rows[0], weight_norm=0.0, snr=None), *run.rows[1:]))
    path = save(run, tmp_path / "s")
    found = told("compare", path)
    assert found["without_values"] == ["taylor"]
    known = [score for score in SCORES if score != "taylor"]
    assert [item["label"] for item in found["rankings"]] == known
    assert {pair["n"] for row in found["agreement"] for pair in row} == {20, 21}
    check_matrices(found, [values_of(run, score) for score in known], 2)
    assert "note: without values: taylor" in printed("compare", path)
    found = hlscore("compare", path, path, "--score", "taylor")
    refused(found, 2, "No module has a value of 'taylor'")


def test_scores_without_an_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    equal = save(noisy(14, 1, **ONE), tmp_path / "equal" / "s")
    other = save(noisy(14, 2), tmp_path / "other" / "s")
    found = told("compare", equal, other, "--within-kinds")
    assert found["agreement"][0][1]["tau"] is None
    assert found["top"]["overlap"][0][1] is found["within_kinds"][0][1] is None
    note = "note: equal gives every module the same value: no order"
    assert hlscore("compare", equal, other).notes == [note]
    text = printed("compare", equal)
    assert f"note: {', '.join(SCORES)} give every module the same value: no order" in text
    assert re.search(rf"^hls +-( +\?){{{len(SCORES) - 1}}}$", text, re.MULTILINE)


def test_too_little_to_compare(tmp_path: Path) -> None:
    none = save(noisy(6, 1, **NO_SCORES), tmp_path / "none" / "s")
    report = noisy(6, 1)
    skipped = replace(report, rows=tuple(r for r in report.rows if not r.is_candidate))
    skipped_file = save(skipped, tmp_path / "skipped")
    single, many = (save(noisy(n, 1), tmp_path / str(n) / "s") for n in (1, 6))
    other = save(renamed(noisy(2, 1), {0: "a.b", 1: "c.d"}), tmp_path / "o")
    for paths, code, *parts in (
        ([none], 3, "No module has a score"),
        ([skipped_file], 3, "No module has a score"),
        ([single], 3, "There is only one module: no order"),
        ([single, single], 3, "There is only one module: no order"),
        ([single, many], 3, "only one module in common", "same model"),
        ([other, many], 3, "no module in common"),
        ([none, many], 2, f"'{none}': No module has a value of 'hls'"),
    ):
        refused(hlscore("compare", *paths), code, *parts)


def test_runs_of_different_models_are_compared_by_name(tmp_path: Path) -> None:
    one = noisy(14, 1)
    two = renamed(noisy(12, 2), {0: "other.name", 5: "another.name"}, model="org/second")
    paths = [save(one, tmp_path / "one" / "s"), save(two, tmp_path / "two" / "s")]
    found = told("compare", *paths, "--top-k", "3")
    assert found["same_structure"] is False
    check_matrices(found, [values_of(one, "hls"), values_of(two, "hls")], 3)
    outcome = hlscore("compare", *paths)
    assert outcome.notes == [
        "note: the runs are of different models: the 10 modules of the same name are compared"
    ]
    assert outcome.out.startswith("org/model, org/second · hls of 2 runs")


@pytest.mark.parametrize("name", HOSTILE, ids=["markup", "ansi", "lines", "wide", "long", "left"])
def test_hostile_names_are_shown_as_text_and_nothing_is_cut(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    paths = [save(runs[0], tmp_path / name / "s"), save(runs[1], tmp_path / "plain" / "s")]
    text = printed("compare", *paths, "--within-kinds")
    assert all(line.isprintable() for line in text.splitlines())
    assert "…" not in text
    shown = name if name.isprintable() else name.encode("unicode_escape").decode()
    assert re.sub(r"\s", "", shown) in re.sub(r"\s", "", text)
    found = told("compare", *paths)
    assert found["files"][0]["label"] == name
    for value in (found["agreement"][0][1]["tau"], found["rankings"][0]["resampled_tau"]):
        assert f"{value:z.2f}" in text
    check_width(text, 40)


def test_wide_matrices_come_in_parts(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    labels = [f"number-{at}" for at in range(13)]
    text = printed("compare", *(save(runs[0], tmp_path / label / "s") for label in labels))
    check_width(text, 40)
    tau = text.partition("Kendall's tau\n")[2].partition("\nshare")[0]
    headings = " ".join(line for line in tau.splitlines() if line.startswith(" ")).split()
    assert [word for word in headings if word != "resamples"] == labels
    assert sum(line.count(" - ") for line in tau.splitlines()) == 13


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ("--score nope", ["There is no score 'nope'", "hls, tail"]),
        ("--score tail", ["All scores of one run are compared"]),
        ("--rank 7", ["scores.parquet': The report holds no score for rank 7", "2, 4, 8, 16"]),
        ("--rank 0", ["--rank is 0", "1 to 8192"]),
        ("--ranks 4", ["one rank"]),
        ("--ranks 0,4", ["--ranks is 0,4", "1 to 8192"]),
        ("--ranks 4,5", ["no score for rank 5"]),
        ("--ranks 4,x", ["--ranks is '4,x'"]),
        ("--ranks 2,8 --rank 4", ["are mutually exclusive"]),
        ("--ranks 2,8 --score kappa", ["same at every LoRA rank", "hls, tail"]),
        ("--top-k 0", ["--top-k is '0'"]),
        ("--top-k 101%", ["--top-k is '101%'"]),
        ("--top-k \u0661", ["--top-k is"]),
        ("--top-k 36", ["--top-k is 36", "35 modules"]),
        ("OTHER --ranks 4,8", ["LoRA ranks of one run"]),
    ],
)
def test_wrong_usage(files: Files, options: str, parts: list[str]) -> None:
    given = [str(files[1]) if word == "OTHER" else word for word in options.split()]
    refused(hlscore("compare", files[0], *given), 2, *parts)


def test_files_that_are_no_scores(files: Files, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(files[0].read_bytes()[:5000])
    (tmp_path / "two\nlines\x1b[31m").write_bytes(b"hello")
    for name in ("cut", "two\nlines\x1b[31m", "missing", "."):
        refused(hlscore("compare", files[1], tmp_path / name), 3)
    report = noisy(7, 1)
    damaged = replace(report, probes=replace(report.probes, examples=-1))
    path = save(damaged, tmp_path / "damaged")
    refused(hlscore("compare", files[1], path), 3, f"'{path}': The scores are damaged")
    plan = save_plan(report, tmp_path / "plan.json")
    refused(hlscore("compare", plan, files[0]), 2, "is a plan", "hlscore diff")
