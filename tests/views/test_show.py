"""`hlscore show FILE`: tables, heat map and JSON against plain loops over the files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_plans import made, put, write
from console import hlscore
from reports import report
from shown import (
    Row,
    heat_map,
    in_order,
    mixed_report,
    modules,
    number,
    printed,
    read_modules,
    read_rows,
    save,
    table,
    told,
)

from hlscore.artifacts import selection
from hlscore.artifacts.report import read_report

RISING = ("place", "rank", "module", "layer", "kind", "block", "status")
RENAMED = {"place": "rank", "params": "n_params"}

Passes = Callable[[Row], bool]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize(("where", "options", "passes"), [
    ("both", "", lambda _: True),
    ("both", "--match *mlp*", lambda row: "mlp" in row["module"]),
    ("both", "--match *.q_proj --match lm_h?ad",
     lambda row: row["module"].endswith(".q_proj") or row["module"] == "lm_head"),
    ("both", "--match *MLP*", lambda _: False),
    ("both", "--kind down_proj", lambda row: row["kind"] == "down_proj"),
    ("both", "--kind self_attn.q_proj", lambda row: row["kind"] == "q_proj" and row["block"] != ""),
    ("both", "--layer 1-3", lambda row: row["layer"] in (1, 2, 3)),
    ("both", "--layer 0-99999999", lambda row: row["layer"] is not None),
    ("both", "--layer 0 --kind v_proj --match *self_attn*",
     lambda row: row["layer"] == 0 and row["kind"] == "v_proj"),
    *(("scores", f"--status {status}", lambda row, status=status: row["status"] == status)
      for status in ("scored", "unreached", "skipped")),
    ("scores", "--layer 0 --status skipped", lambda _: False),
    *(("plan", f"--mode {mode}", lambda row, mode=mode: row["mode"] == mode)
      for mode in ("full", "lora", "frozen")),
    ("plan", "--mode lora --layer 1", lambda row: row["mode"] == "lora" and row["layer"] == 1),
])  # fmt: skip
def test_filters(scores: Path, plan: Path, where: str, options: str, passes: Passes) -> None:
    for path, rows in ((scores, read_rows(scores)), (plan, read_modules(plan))):
        kind = "report" if path == scores else "plan"
        if where not in ("both", path.stem):
            continue
        found = [row for row in rows if passes(row)]
        wanted = [row["module"] for row in found]
        shown = told("show", path, *options.split(), "--sort", "place")
        assert modules(shown) == wanted
        counts = (kind, len(rows), len(wanted))
        assert (shown["artifact"], shown["modules"], shown["matching"]) == counts
        if path == plan:
            assert shown["rows"] == found
        out = printed("show", path, *options.split(), "--sort", "place", "--top", "all")
        if wanted:
            assert [cells[1] for cells in table(out)] == wanted
            part = f"\n{len(wanted)} of {len(rows)} modules\n"
            assert (part in out) == (len(wanted) < len(rows))
        else:
            assert out.endswith(f"\nNone of its {len(rows)} modules matches {options}.\n")


def test_json_holds_every_column_but_the_resamples(scores: Path) -> None:
    wanted = [
        {name: value for name, value in row.items() if not name.endswith("_replicates")}
        for row in read_rows(scores)
    ]
    shown = told("show", scores, "--sort", "place")
    assert shown["rows"] == wanted
    assert list(shown["rows"][0]) == list(wanted[0])
    assert (shown["model"], shown["file"]) == ("org/model", str(scores))


def report_columns(path: Path) -> list[str]:
    schema = pq.read_schema(path)
    numbers = [item.name for item in schema if str(item.type) in ("int32", "int64", "double")]
    return [*RISING, "params", *(name for name in numbers if name not in RISING)]


def test_every_column_of_a_report_orders_it(scores: Path) -> None:
    rows, names, found = read_rows(scores), report_columns(scores), read_report(scores)
    assert len(names) > 35
    columns = selection.columns_of(found)
    assert list(columns) == names
    by_place = selection.ordered(found.rows, columns["place"], reverse=False)
    for name, column in columns.items():
        for reverse in (False, True):
            falling = (name in RISING) == reverse
            wanted = in_order(rows, RENAMED.get(name, name), falling=falling)
            ordered = selection.ordered(by_place, column, reverse=reverse)
            assert [row.module for row in ordered] == [row["module"] for row in wanted], name
    shown = told("show", scores, "--sort", "hls", "--reverse")
    assert modules(shown) == [row["module"] for row in in_order(rows, "hls", falling=False)]
    assert shown["sort"] == "hls"


def test_every_column_of_a_plan_orders_it(plan: Path) -> None:
    rows = read_modules(plan)
    rising = {"place": "position", **{name: name for name in (
        "position", "module", "layer", "kind", "block", "mode")}}  # fmt: skip
    falling = {"hls": "score", **{name: name for name in (
        "score", "selection_probability", "params", "trained_params", "rank", "matrices",
        "out_features", "in_features")}}  # fmt: skip
    for name, field in (rising | falling).items():
        for reverse in ([], ["--reverse"]) if name == "hls" else ([],):
            wanted = in_order(rows, field, falling=(name in falling) != bool(reverse))
            assert told("show", plan, "--sort", name, *reverse)["rows"] == wanted, (name, reverse)


def test_unknown_columns_are_refused_with_those_there_are(scores: Path, plan: Path) -> None:
    for options in (("--sort", "tial"), ("--columns", "tail,tial"), ("--columns", "")):
        found = hlscore("show", scores, *options)
        assert found.code == 2
        assert f"{options[0]} '{options[1][5:] or options[1]}' is no column" in found.message
        assert set(found.message.split("one of: ")[1].strip().strip(".").split(", ")) == set(
            report_columns(scores)
        )
    found = hlscore("show", plan, "--sort", "tail")
    assert found.code == 2
    assert "hls, place, position" in found.message
    assert hlscore("show", plan, "--sort", "").code == 2


@pytest.mark.parametrize("top", ["7", "500", "all"])
def test_top_cuts_the_table_and_the_json(scores: Path, top: str) -> None:
    rows = read_rows(scores)
    number = len(rows) if top in ("0", "all") else min(int(top), len(rows))
    shown = told("show", scores, "--sort", "place", "--top", top)
    assert modules(shown) == [row["module"] for row in rows[:number]]
    assert shown["matching"] == len(rows)
    out = printed("show", scores, "--sort", "place", "--top", top)
    assert len(table(out)) == number
    rest = re.findall(r"\.\.\. (\d+) more modules?\n", out)
    assert rest == ([] if number == 31 else [str(31 - number)])


@pytest.mark.parametrize("score", ["hls", "tail", "rgn"])
def test_the_table_says_what_the_file_says(scores: Path, score: str) -> None:
    resamples = {"hls": "hls_replicates", "tail": "tail_replicates",
                 "grad_norm": "grad_norm_replicates"}.get(score)  # fmt: skip
    columns = "stable_rank, matrices_reached"
    out = printed("show", scores, "--sort", score, "--columns", columns, "--top", "0")
    header = next(line for line in out.split("\n") if line.startswith(" # "))
    names = ["#", "module", score, "±", "se", *(["chosen", "in"] if score == "hls" else []),
             "out", "x", "in", "stable_rank", "matrices_reached"]  # fmt: skip
    assert header.split() == names
    wanted = in_order(read_rows(scores), score, falling=True)
    for row, cells in zip(wanted, table(out), strict=True):
        start = ["-" if row["rank"] is None else str(row["rank"]), row["module"]]
        assert cells[:3] == [*start, number(row[score])]
        known = resamples and row[resamples] and row[score] is not None
        if resamples:
            assert cells[3] == number(np.std(row[resamples], ddof=1) if known else None)
        size = f"{row['out_features']} x {row['in_features']}"
        size = size if row["matrices"] == 1 else f"{row['matrices']} x {size}"
        assert " ".join(cells).endswith(
            f"{size} {number(row['stable_rank'])} {number(row['matrices_reached'])}"
        )
        if row["reason"]:
            assert f"\n     {row['reason']}\n" in out
    chosen = [line for line in out.split("\n") if " 75 % " in line]
    assert len(chosen) == (score == "hls")
    assert "\nmodules 29 scored, 1 unreached (zero gradient), 1 skipped" in out


def shade(score: float | None, largest: float) -> str:
    """A fifth of the square root's way from nothing to the largest for each shade."""
    if score is None or score <= 0:
        return "·"
    share = (score / largest) ** 0.5
    return next(
        mark for mark, below in zip("░▒▓█", (1 / 6, 1 / 2, 5 / 6, 2), strict=True) if share < below
    )


def test_the_heat_map_shades_the_square_root(scores: Path, plan: Path) -> None:
    for path, score, field in (
        (scores, "hls", "hls"),
        (scores, "rgn", "rgn"),
        (plan, "hls", "score"),
    ):
        rows = read_rows(path) if path == scores else read_modules(path)
        out = printed("show", path, "--sort", score)
        drawn = heat_map(out)
        ruler = drawn.pop("layer")
        placed = [row for row in rows if row["layer"] is not None]
        largest = max(row[field] or 0 for row in placed)
        assert ruler.split() == ["0"]
        assert set(drawn) == {row["kind"] for row in placed}
        seen = 0
        for row in placed:
            cell = drawn[row["kind"]][2 * row["layer"] : 2 * row["layer"] + 2]
            mark = shade(row[field], largest)
            assert cell == (f"{mark}◆" if row.get("mode") == "full" else 2 * mark), row["module"]
            seen += 2
        assert sum(len(line.replace(" ", "")) for line in drawn.values()) == seen
        assert f"· no signal  ░ ▒ ▓ █ rising {score}" in out
        assert ("◆ trained in full" in out) == (path == plan)


REFUSED = [
    ("scores", "--mode full", "--mode is for a plan.json, not for scores.\n  try: --status"),
    ("plan", "--status scored", "--status is for a scores.parquet, not a plan.\n  try: --mode"),
    ("plan", "--columns tail", "--columns is for a scores.parquet, not a plan.\n  try: --json"),
    ("scores", "--columns tail --json", "--columns is for tables; --json prints every column."),
    *(("both", f"-m 0.mlp.up_proj {option}",
       f"{option.split()[0]} is for tables; --module shows one module.")
      for option in ("--sort tail", "--reverse", "--columns tail", "--top 3")),
    ("both", "--layer x", "--layer is 'x'."),
    ("both", "--layer 1-2-3", "--layer is '1-2-3'."),
    ("both", "--layer ٣", "--layer is '٣'."),
    ("both", "--layer 5-2", "--layer 5-2 ends before it begins.\n  try: Use --layer 2-5."),
    ("both", "--kind mlp", "--kind 'mlp' is no kind of module in this file.\n  try: Use one of: "),
    ("both", "--top -1", "--top is '-1'."),
    ("both", "--top 99999999999", "--top is '99999999999'."),
]  # fmt: skip


@pytest.mark.parametrize(("where", "options", "said"), REFUSED)
def test_options_that_make_no_sense_are_refused(
    scores: Path, plan: Path, where: str, options: str, said: str
) -> None:
    for path in {"scores": [scores], "plan": [plan], "both": [scores, plan]}[where]:
        found = hlscore("show", path, *options.split())
        assert found.code == 2
        assert found.message.startswith(f"error: {said}")
        if "--kind" in options:
            kinds = found.message.partition("one of: ")[2].rstrip(".\n").split(", ")
            assert {"q_proj", "down_proj"} < set(kinds)


def test_no_module(tmp_path: Path) -> None:
    path = save(replace(report(0), rows=()), tmp_path / "scores.parquet")
    assert printed("show", path).endswith("\nIt holds no modules.\n")
    assert told("show", path)["rows"] == []
    only_skipped = save(report(0), path)
    assert [cells[1] for cells in table(printed("show", only_skipped))] == ["lm_head"]
    assert "rising" not in printed("show", only_skipped)


def test_a_score_that_this_version_does_not_know(tmp_path: Path) -> None:
    found = mixed_report()
    path = save(replace(found, run=replace(found.run, score="gone")), tmp_path / "scores.parquet")
    refused = hlscore("show", path)
    assert refused.code == 3
    assert "ordered by 'gone', which this hlscore does not know" in refused.message
    assert table(printed("show", path, "--sort", "tail"))
    assert "1 of 30 by gone" in printed("show", path, "--module", found.candidates[0].module)


def test_files_that_are_none_of_ours_give_one_clear_line(tmp_path: Path) -> None:
    good = save(report(8), tmp_path / "good.parquet").read_bytes()
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "foreign")
    (tmp_path / "directory").mkdir()
    for name, content, said in (
        ("missing", None, "There is no file"),
        ("directory", None, "is a directory"),
        ("foreign", None, "was not written by hlscore"),
        ("newer", b'{"schema_version": 99}', "has plan schema 99; this hlscore reads 1"),
        ("half", good[: len(good) // 2], "is not a Parquet file"),
        ("start", b"PAR1", "is not a Parquet file"),
        ("hole", good[:4] + b"\0" * (len(good) - 8) + good[-4:], "is not a Parquet file"),
        ("empty", b"", "is not a plan"),
        ("random", bytes((7 * at * at + 13) % 256 for at in range(4000)), "is not a plan"),
        ("deep", b"[" * 100_000, "is not a plan"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        for options in ([], ["--json"], ["--module", "q_proj"], ["--mode", "full"]):
            found = hlscore("show", path, *options)
            assert found.code == 3, name
            line = found.message.splitlines()[0]
            assert str(path) in line
            assert said in line, line
            assert len(line) < len(str(path)) + 200


def test_a_plan_that_does_not_add_up_is_shown_and_exported_with_a_warning(tmp_path: Path) -> None:
    document = made()
    plan = write(document, tmp_path / "plan.json")
    csv = tmp_path / "plan.csv"
    commands = (("show", plan), ("export", plan, "--to", "csv", "--force", "-o", csv))
    for command in commands:
        assert hlscore(*command).err == ""
    write(put(document, ("totals", "full_modules"), 7), plan)
    for command in commands:
        done = hlscore(*command)
        assert done.code == 0
        assert "'totals.full_modules' is 7; the modules give 3. `hlscore check` lists" in done.err
