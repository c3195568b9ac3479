"""Reading plan files: older versions, and files that are no plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import reports

from hlscore.artifacts.plan_file import plan_text, read_plan, write_plan
from hlscore.artifacts.plan_making import make_plan
from hlscore.errors import ArtifactError
from hlscore.planning.allocation import allocate
from hlscore.settings import PlanSettings

OLD = Path(__file__).parent / "data" / "plan_v1.json"


@pytest.fixture
def document() -> dict[str, Any]:
    base = reports.report(12)
    made = make_plan(base, allocate(base, PlanSettings(budget="0.25", rank=4)))
    content: dict[str, Any] = json.loads(plan_text(made))
    return content


@pytest.mark.parametrize(
    "given",
    [{}, {"budget": "0.4p", "ranks": (2, 4, 8)}, {"baseline": "lora-matched"},
     {"locks": ("*q_proj=frozen",)}, {"budget": "90MiB"}],
    ids=str,
)  # fmt: skip
def test_every_kind_of_plan_survives_the_round_trip(given: dict[str, Any], tmp_path: Path) -> None:
    base = reports.report(12)
    made = make_plan(base, allocate(base, PlanSettings(**{"budget": "0.25", "rank": 4, **given})))
    write_plan(made, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == made


def test_version_1_is_still_read() -> None:
    old = json.loads(OLD.read_text())
    plan = read_plan(OLD)
    assert old["schema_version"] == 1
    assert plan.schema_version == 2
    assert [(item.module, item.mode, item.rank) for item in plan.modules] == [
        (item["module"], item["mode"], item["rank"]) for item in old["modules"]
    ]
    assert plan.budget.spent == old["totals"]["full_params"] <= plan.budget.limit
    assert plan.totals.trained_params == old["totals"]["trained_params"]
    assert any("schema version 1" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not a plan"),
        (b"[]", "no JSON object"),
        (b'{"schema_version": NaN}', "NaN is no number"),
        (b'{"schema_version": 2, "schema_version": 2}', "comes twice"),
        (b'{"schema_version": 3}', "plan schema 3"),
        (b'{"schema_version": true}', "plan schema True"),
        (b'{"schema_version": "2"}', "plan schema '2'"),
        (b'{"schema_version": 2}', "at 'model'"),
        (b'{"schema_version": 1}', "modules"),
        (b'{"schema_version": 1, "modules": 5}', "not a plan"),
        (b"\xff\xfe", "not a plan"),
        (b"[" * 100_000, "not a plan"),
        (b"1" * 10_000, "not a plan"),
    ],
)
def test_other_files_are_refused_in_one_line(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(text)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_plan(tmp_path / "plan.json")
    assert "\n" not in caught.value.message
    with pytest.raises(ArtifactError, match="no file"):
        read_plan(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "lora", "rank": None, "alpha": None}, "rank or alpha"),
        ({"mode": "full", "rank": 4, "alpha": 8}, "rank or alpha"),
        ({"mode": "lora", "rank": 4, "alpha": None}, "rank or alpha"),
        ({"mode": "half"}, "mode"),
        ({"module": "a\x1b[2Jb"}, "cannot be printed"),
        ({"out_features": 0}, "out_features"),
        ({"extra": 1}, "extra"),
        ({"form": "circle"}, "form"),
    ],
)
def test_damaged_modules_are_named(
    change: dict[str, Any], message: str, document: dict[str, Any], tmp_path: Path
) -> None:
    document["modules"][0] |= change
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=message):
        read_plan(tmp_path / "plan.json")


def test_a_module_listed_twice_is_refused(document: dict[str, Any], tmp_path: Path) -> None:
    document["modules"].append(document["modules"][0])
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="listed twice"):
        read_plan(tmp_path / "plan.json")
