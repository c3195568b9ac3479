"""What `hlscore diff` prints: other models, hostile names, narrow terminals, colour, errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from compared import (
    noisy,
    printed,
    refused,
    renamed,
    save,
    save_plan,
    told,
)
from console import hlscore

from hlscore.records import ScoreReport

COUNT = 21
"""Names that a file may hold; the others are refused when it is read."""


@pytest.fixture(scope="module")
def runs() -> tuple[ScoreReport, ...]:
    return tuple(noisy(COUNT, seed) for seed in (1, 2))


@pytest.fixture(scope="module")
def tables(
    runs: Sequence[ScoreReport], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("tables")
    return tuple(save(run, folder / f"{run.run.seed}" / "scores.parquet") for run in runs)


@pytest.fixture(scope="module")
def plans(
    runs: Sequence[ScoreReport], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("plans")
    return tuple(save_plan(run, folder / f"{run.run.seed}.json") for run in runs)


def table_under(heading: str, text: str) -> list[list[str]]:
    """The words of a table's lines, from below its headings to the next empty line."""
    lines = text.splitlines()
    start = next(at for at, line in enumerate(lines) if line.split()[:1] == [heading])
    end = lines.index("", start)
    return [line.split() for line in lines[start + 1 : end]]


def test_printed_figures_are_those_of_json(
    tables: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    arguments = ("diff", *tables, "--budget", "0.4")
    found, text = told(*arguments), printed(*arguments, "--top", "100")
    moves = table_under("#", text)
    assert [words[3] for words in moves] == [move["module"] for move in found["moves"]]
    for words, move in zip(moves, found["moves"], strict=True):
        a, b = move["a"], move["b"]
        assert words[:3] == [str(a["position"]), ">", str(b["position"])]
        assert words[4:6] == [f"{a['score']:.3g}", f"{b['score']:.3g}"]
        trained = [f"LoRA {s['rank']}" if s["mode"] == "lora" else s["mode"] for s in (a, b)]
        assert " ".join(words[6:]) == " ".join(trained)
    for heading, key in (("kind", "by_kind"), ("layer", "by_layer")):
        wanted = [
            [str(row[name]) for name in ("name", "modules", "full_a", "full_b", "full_both")]
            for row in found[key] if row["full_a"] or row["full_b"]
        ]  # fmt: skip
        assert table_under(heading, text) == wanted
    agreement, full = found["agreement"], found["full"]
    assert (
        f"Kendall's tau of hls {agreement['tau']:z.2f}, 95 % interval {agreement['low']:z.2f} to "
        f"{agreement['high']:z.2f}, over {COUNT} modules"
    ) in text
    assert (
        f"{full['shared']} in full on both sides ({full['expected_by_chance']:.2g} by chance), "
        f"of 8 in A and 8 in B; Jaccard {full['jaccard']:.2f}"
    ) in text
    taus = [found[side]["resampled_tau"] for side in ("a", "b")]
    assert f"same probes: {taus[0]:.2f} in A, {taus[1]:.2f} in B; new probes agree less" in text


@pytest.mark.parametrize(("spread", "less"), [(0.0001, True), (5.0, False)])
def test_noise_is_held_against_the_difference(tmp_path: Path, spread: float, *, less: bool) -> None:
    """Where resamples hardly scatter, noise cannot explain another order."""
    paths = []
    for seed in (1, 2):
        report = noisy(COUNT, seed)
        rows = [
            replace(row, hls_replicates=tuple(
                (row.hls or 0) + spread * (value - 0.9 * (row.tail_energy or 0))
                for value in row.hls_replicates
            )) for row in report.rows
        ]  # fmt: skip
        paths.append(save(replace(report, rows=tuple(rows)), tmp_path / f"{seed}"))
    found = told("diff", *paths)
    lowest = min(found[side]["resampled_tau"] for side in ("a", "b"))
    assert (found["agreement"]["high"] < lowest) is less
    text = printed("diff", *paths)
    assert ("A and B agree less than that: other probes, or a real change" in text) is less
    assert ("noise alone can explain the other order" in text) is not less


def test_different_models_are_told(
    runs: Sequence[ScoreReport], plans: Sequence[Path], tmp_path: Path
) -> None:
    other = renamed(noisy(14, 3), {1: "other.name", 3: "another.name"}, model="org/second")
    rows = list(other.rows)
    for place in (0, 5):
        rows[place] = replace(rows[place], out_features=32, n_params=32 * rows[place].in_features)
    second = save_plan(replace(other, rows=tuple(rows)), tmp_path / "second.json")
    found = told("diff", plans[0], second)
    assert found["same_structure"] is False
    assert found["modules"] == {"common": 12, "only_a": 9, "only_b": 2, "other_shape": 2}
    assert hlscore("diff", plans[0], second).notes == [
        "note: these are different models, org/model and org/second: 12 modules of the same name "
        "are compared, 2 of them of other shapes"
    ]
    text = printed("diff", plans[0], second)
    assert ", 9 only in A, 2 only in B;" in text
    assert re.search(r"^ *\d+ > - .* absent$", text, re.MULTILINE)
    assert re.search(r"^ *- > \d+ .* absent +(full|LoRA 4)$", text, re.MULTILINE)
    namesake = save_plan(renamed(runs[0], {0: "x.y"}), tmp_path / "namesake.json")
    (note,) = hlscore("diff", plans[0], namesake).notes
    assert "different models, both called org/model: 20 modules of the same name" in note


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--score", "nope"], ["There is no score 'nope'", "hls, tail"]),
        (["--rank", "7"], ["no score for rank 7", "2, 4, 8, 16"]),
        (["--rank", "0"], ["--rank is 0", "1 to 8192"]),
        (["--rank", "-1"], ["--rank is -1"]),
        (["--budget", "x"], ["The budget 'x' is not"]),
        (["--budget", "2"], ["not above 0 and at most 1"]),
        (["--budget", "0.01"], ["less than one module"]),
        (["--budget", "1MiB"], ["too small for org/model"]),
        (["--budget", ""], ["The budget '' is not"]),
    ],
    ids=lambda item: "=".join(item) if item[0].startswith("--") else "",
)
def test_wrong_usage(tables: Sequence[Path], options: list[str], parts: list[str]) -> None:
    refused(hlscore("diff", *tables, *options), 2, *parts)


def test_plans_are_not_planned_again(plans: Sequence[Path]) -> None:
    for options in (["--budget", "0.2"], ["--score", "tail"], ["--rank", "4"]):
        refused(hlscore("diff", *plans, *options), 2, "nothing is left to plan")
