"""`hlscore show` on plans and reports that are unusual but right, and on files that are wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from console import hlscore
from report_content import planned
from reports import report
from shown import (
    heat_map,
    mixed_report,
    number,
    read_modules,
    read_rows,
    same_score,
    show,
    show_json,
    table,
    write,
)

from hlscore.artifacts.plan_file import write_plan


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("baseline", ["all-lora", "random", "all-full"])
def test_baselines(tmp_path: Path, baseline: str) -> None:
    path = tmp_path / "plan.json"
    write_plan(planned(report(12), baseline=baseline), path)
    out = show(path)
    assert f"chosen as the baseline {baseline}" in out
    number = sum(row["mode"] == "full" for row in read_modules(path))
    assert f"\nfull    {number} of 12 modules" in out
    assert ("◆" in out) == (number > 0) == (baseline != "all-lora")
    assert ("None of its 12 modules" in show(path, "--mode", "full")) == (number == 0)


def test_one_module(tmp_path: Path) -> None:
    path = write(report(1), tmp_path / "scores.parquet")
    assert len(table(show(path))) == 2
    assert heat_map(show(path)) == {"q_proj": "██", "layer": "0"}
    write_plan(planned(report(1), budget="1"), tmp_path / "plan.json")
    assert heat_map(show(tmp_path / "plan.json")) == {"q_proj": "█◆", "layer": "0"}
    assert "1 of 1 module (100 %)" in show(tmp_path / "plan.json")


def test_no_module(tmp_path: Path) -> None:
    path = write(replace(report(0), rows=()), tmp_path / "scores.parquet")
    assert show(path).endswith("\nIt holds no modules.\n")
    assert show_json(path)["rows"] == []
    only_skipped = write(report(0), path)
    assert [cells[1] for cells in table(show(only_skipped))] == ["lm_head"]
    assert "rising" not in show(only_skipped)


@pytest.mark.parametrize(("value", "mark"), [(None, "·"), (0.0, "·"), (-1.0, "·"), (0.25, "█")])
def test_scores_that_are_all_the_same(tmp_path: Path, value: float | None, mark: str) -> None:
    path = write(same_score(mixed_report(14), value), tmp_path / "scores.parquet")
    rows = read_rows(path)
    for options in ([], ["--reverse"], ["--sort", "tail"]):
        out = show(path, *options)
        assert [cells[1] for cells in table(out)] == [row["module"] for row in rows]
        assert {cells[2] for cells in table(out)[:-1]} == {number(value)}
        drawn = heat_map(out)
        assert drawn.pop("layer").strip() == "0"
        assert set("".join(drawn.values())) <= {mark, " "}


def test_a_score_that_this_version_does_not_know(tmp_path: Path) -> None:
    found = mixed_report()
    path = write(replace(found, run=replace(found.run, score="gone")), tmp_path / "scores.parquet")
    refused = hlscore("show", path)
    assert refused.code == 3
    assert "ordered by 'gone', which is no score" in refused.message
    assert table(show(path, "--sort", "tail"))
    assert "1 of 30 by gone" in show(path, "--module", found.candidates[0].module)


def _damaged(folder: Path) -> dict[str, Path]:
    """Files that are neither a plan nor a report, by what they are."""
    good = write(report(8), folder / "good.parquet").read_bytes()
    plan = folder / "good.json"
    write_plan(planned(report(12)), plan)
    contents = {
        "text": b"hello\nthere\n",
        "empty": b"",
        "random": bytes((7 * place * place + 13) % 256 for place in range(4000)),
        "head": good[: len(good) // 2],
        "magic": b"PAR1",
        "hole": good[:4] + b"\0" * (len(good) - 8) + good[-4:],
        "torn plan": plan.read_bytes()[:900],
        "list": b"[]",
        "object": b'{"schema_version": 1}',
        "newer": b'{"schema_version": 99}',
        "csv": b"a,b\n1,2\n",
        "deep": b"[" * 100_000,
    }
    paths = {name: folder / name for name in contents}
    for name, path in paths.items():
        path.write_bytes(contents[name])
    paths |= {"missing": folder / "no such file", "directory": folder / "directory"}
    paths["directory"].mkdir()
    paths["foreign"] = folder / "foreign"
    pq.write_table(pa.table({"a": [1, 2]}), paths["foreign"])
    return paths


def test_files_that_are_none_of_ours_give_one_clear_line(tmp_path: Path) -> None:
    said = {
        "missing": "There is no file",
        "directory": "is a directory",
        "foreign": "was not written by hlscore",
        "newer": "has plan schema 99; this hlscore reads 1",
        **dict.fromkeys(("head", "magic", "hole"), "is not a Parquet file"),
    }
    for name, path in _damaged(tmp_path).items():
        for options in ([], ["--json"], ["--module", "q_proj"], ["--mode", "full"]):
            found = hlscore("show", path, *options)
            assert found.code == 3, name
            line = found.message.splitlines()[0]
            assert str(path) in line
            assert said.get(name, "is not a plan") in line, line
            assert len(line) < len(str(path)) + 200


def test_a_report_of_which_a_value_is_wrong(tmp_path: Path) -> None:
    good = pq.read_table(write(report(4), tmp_path / "good.parquet"))
    for name, values, said in (
        ("hls", [1.0, float("nan"), 1.0, 1.0, 1.0], "'hls' is NaN or infinity"),
        ("module", ["a", "b", "a", "c", "d"], "'a' is listed twice"),
        ("status", ["scored", "lost", "scored", "scored", "scored"], "'status' is 'lost'"),
    ):
        place = good.schema.get_field_index(name)
        field = good.schema.field(place)
        path = tmp_path / "bad.parquet"
        pq.write_table(good.set_column(place, field, pa.array(values, type=field.type)), path)
        found = hlscore("show", path)
        assert found.code == 3
        assert said in found.message
        assert "is damaged" in found.message


def test_without_a_file() -> None:
    found = hlscore("show")
    assert (found.code, found.out) == (2, "")
    assert "Traceback" not in found.err
    assert "file" in found.err.lower()
