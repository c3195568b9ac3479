"""Reading plan files, and files that are no plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import reports
from broken_plans import made, put, values

from hlscore.artifacts.json_file import LARGEST_BYTES
from hlscore.artifacts.plan_file import read_plan, write_plan
from hlscore.errors import ArtifactError, UsageError
from hlscore.planning.make_plan import make_plan
from hlscore.settings import MemorySettings, PlanSettings


@pytest.fixture
def document() -> dict[str, Any]:
    return made()


def test_every_kind_of_plan_survives_the_round_trip(tmp_path: Path) -> None:
    for given in ({}, {"budget": "0.4p", "ranks": (2, 4, 8)}, {"baseline": "lora-matched"},
                  {"locks": ("*q_proj=frozen",)}, {"budget": "90MiB"}):  # fmt: skip
        settings = PlanSettings(**{"budget": "0.25", "rank": 4, **given})
        plan = make_plan(reports.report(12), settings)
        write_plan(plan, tmp_path / "plan.json")
        assert read_plan(tmp_path / "plan.json") == plan, given


REFUSED = {
    "empty": (b"", "not a plan"),
    "array": (b"[]", "no JSON object"),
    "constant": (b'{"schema_version": NaN}', "NaN is no number"),
    "twice": (b'{"schema_version": 1, "schema_version": 1}', "comes twice"),
    "newer": (b'{"schema_version": 3}', "plan schema 3"),
    "bool": (b'{"schema_version": true}', "plan schema True"),
    "text": (b'{"schema_version": "2"}', "plan schema '2'"),
    "bare": (b'{"schema_version": 1}', "at 'model'"),
    "binary": (b"\xff\xfe", "byte 0 is not UTF-8"),
    "encoding": (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
    "brackets": (b"[" * 100_000, "not a plan"),
    "digits": (b"1" * 10_000, "not a plan"),
    "depth": (b'{"schema_version": ' + b"[" * 60 + b"]" * 60 + b"}", "more than 40 deep"),
    "long": (b'{"schema_version": "' + b"x" * 10_000 + b'"}', "plan schema 'x+\\.\\.\\.;"),
    "surrogate": (b'{"schema_version": 1, "\\ud800": 1}', "cannot be printed"),
    "bytes": (b" " * (LARGEST_BYTES + 1), "larger than"),
    "values": (b'{"a": [' + b"[]," * 2_000_000 + b"[]]}", "more values"),
    "keys": (
        b"{" + b",".join(b'"%d": 1' % key for key in range(1001)) + b"}", "more than 1000 keys"
    ),
    "equal keys": (
        b"{" + b",".join(b'"%d": 1' % key for key in [*range(100_000), 99_999]) + b"}",
        "'99999' comes twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_other_files_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    text, message = REFUSED[kind]
    (tmp_path / "plan.json").write_bytes(text)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_plan(tmp_path / "plan.json")
    assert "\n" not in caught.value.message


def test_paths_that_lead_to_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no file"):
        read_plan(tmp_path / "other.json")
    with pytest.raises(UsageError, match="a path, not from an object of type 'int'"):
        read_plan(3)  # type: ignore[arg-type]


def changed(document: dict[str, Any], path: tuple[Any, ...], value: str) -> str:
    """The document as JSON with one value replaced by given JSON."""
    return json.dumps(put(document, path, "PLACE")).replace('"PLACE"', value)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 25, "1" + "0" * 4000])
def test_numbers_too_large_are_refused_anywhere(
    number: str, document: dict[str, Any], tmp_path: Path
) -> None:
    document["provenance"]["settings"] = {"deep": [{"er": 1}]}
    document["modules"] = document["modules"][:2]
    for path, value in values(document).items():
        if not isinstance(value, int | float | None) or isinstance(value, bool):
            continue
        (tmp_path / "plan.json").write_text(changed(document, path, number))
        with pytest.raises(ArtifactError):
            read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("text", [r"a\u001b[2Jb", r"a\ud800b", r"a\u0000", r"a\nb", r"\u202eab"])
def test_texts_that_cannot_be_printed_are_refused_anywhere(
    text: str, document: dict[str, Any], tmp_path: Path
) -> None:
    document["notes"] = ["a note"]
    document["provenance"]["settings"] = {"deep": [{"er": "x"}]}
    document["modules"] = document["modules"][:2]
    found = [path for path, value in values(document).items() if isinstance(value, str)]
    assert ("notes", 0) in found
    assert ("modules", 0, "remark") in found
    for path in found:
        (tmp_path / "plan.json").write_text(changed(document, path, f'"{text}"'))
        with pytest.raises(ArtifactError, match="cannot be printed") as caught:
            read_plan(tmp_path / "plan.json")
        assert caught.value.message.isprintable()


def test_texts_in_other_scripts_are_read(document: dict[str, Any], tmp_path: Path) -> None:
    text = "données, 数据\u3000集, داده\u200cها, 👩\u200d🔬"
    document["notes"] = [text]
    # With a byte order mark, which is read over.
    (tmp_path / "plan.json").write_text("\ufeff" + json.dumps(document, ensure_ascii=False))
    assert read_plan(tmp_path / "plan.json").notes == [text]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("modules", 0, "rank"), 8193),
        (("modules", 0, "rank"), 0),
        (("modules", 0, "alpha"), 0),
        (("modules", 0, "alpha"), 2**32 + 1),
        (("modules", 0, "position"), 0),
        (("modules", 0, "out_features"), 2**48 + 1),
        (("modules", 0, "params"), 2**62 + 1),
        (("lora", "rank"), 8193),
        (("lora", "alpha"), 8192 * 64 + 1),
        (("learning_rates", "full", "value"), 1001.0),
        (("memory", "total_bytes"), 2**62 + 1),
        (("provenance", "probes", "examples"), -1),
        (("modules", 0, "mode"), "half"),
        (("modules", 0, "form"), "circle"),
    ],
)
def test_values_out_of_range_are_named(
    place: tuple[Any, ...], value: object, document: dict[str, Any], tmp_path: Path
) -> None:
    document["modules"][0] |= {"mode": "lora", "rank": 4, "alpha": 8}
    (tmp_path / "plan.json").write_text(changed(document, place, json.dumps(value)))
    with pytest.raises(ArtifactError, match=rf"at '{'.'.join(map(str, place))}'"):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "lora", "rank": None, "alpha": None}, "rank or alpha"),
        ({"mode": "full", "rank": 4, "alpha": 8}, "rank or alpha"),
        ({"mode": "lora", "rank": 4, "alpha": None}, "rank or alpha"),
        ({"module": "model.layers.0.self_attn.k_proj",
          "parameter": "model.layers.0.self_attn.k_proj.weight"}, "listed twice"),
        ({"module": "a\u200c", "parameter": "a\u200c.weight"}, "cannot be printed"),
        ({"form": "linear", "parameter": "{}.weight"}, ""),
        ({"form": "linear", "parameter": "{}"}, "is no weight of"),
        ({"form": "linear", "parameter": "{}.bias"}, "is no weight of"),
        ({"form": "conv1d", "parameter": "{}"}, "is no weight of"),
        ({"form": "embedding", "parameter": "{}"}, "is no weight of"),
        ({"form": "experts", "parameter": "{}"}, ""),
        ({"form": "experts", "parameter": "{}.weight"}, ""),
        ({"form": "parameter", "parameter": "{}"}, ""),
        ({"form": "parameter", "parameter": "{}.x"}, "is no weight of"),
    ],
    ids=str,
)  # fmt: skip
def test_values_that_do_not_go_together_are_named(
    change: dict[str, Any], message: str, document: dict[str, Any], tmp_path: Path
) -> None:
    first = document["modules"][0]
    name = first["module"]
    for key, value in change.items():
        first[key] = value.format(name) if isinstance(value, str) else value
    (tmp_path / "plan.json").write_text(json.dumps(document))
    if not message:
        read_plan(tmp_path / "plan.json")
        return
    with pytest.raises(ArtifactError, match=message):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("alpha", [2**19 + 1, 10**30])
def test_settings_that_no_plan_holds_are_refused(alpha: int) -> None:
    with pytest.raises(UsageError, match="--alpha"):
        PlanSettings(alpha=alpha)
    memory = MemorySettings(train_batch=2**30, train_length=2**30)
    settings = PlanSettings(budget="0.25", rank=4, memory=memory)
    with pytest.raises(UsageError, match="--train-batch"):
        make_plan(reports.report(12), settings)
