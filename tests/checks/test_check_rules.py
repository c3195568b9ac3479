"""Every rule of `hlscore check`, broken one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from broken_plans import Change, Document, findings, line_of, made, put, write
from console import hlscore

from hlscore.checks.rule import RULES
from hlscore.settings import MemorySettings

FULL, LORA = 0, 11  # places of a module in full and of one with LoRA in the plan of `made`


def module(place: int, **values: Any) -> Change:
    """A change of some fields of one module, or of all of them."""

    def change(document: Document) -> None:
        for item in document["modules"] if place < 0 else [document["modules"][place]]:
            item.update(values)

    return change


def every(**values: Any) -> Change:
    return module(-1, **values)


def twice(document: Document) -> None:
    document["modules"].append(dict(document["modules"][0]))


def swapped(document: Document) -> None:
    """The first and the last module change their modes."""
    first, last = document["modules"][0], document["modules"][-1]
    for name in ("mode", "rank", "alpha", "trained_params"):
        first[name], last[name] = last[name], first[name]


# Code, place of the finding, and the value that is wrong there or a larger change.
BROKEN: list[tuple[str, tuple[Any, ...], Any]] = [
    ("HLS102", ("schema_version",), 99),
    ("HLS103", ("modules", 3, "score"), "high"),
    ("HLS103", ("modules", 3, "extra"), 1),
    ("HLS103", ("budget", "limit"), lambda plan: plan["budget"].pop("limit")),
    ("HLS103", ("modules",), {}),
    ("HLS105", ("modules", 12, "module"), twice),
    ("HLS106", ("modules", LORA, "module"), module(
        LORA, module="model.layers.0.mlp.down_proj.inner",
        parameter="model.layers.0.mlp.down_proj.inner.weight")),
    ("HLS106", ("skipped", 0, "module"), "model.layers.0.self_attn.q_proj"),
    ("HLS107", ("modules", FULL, "rank"), module(FULL, rank=4, alpha=8)),
    ("HLS108", ("modules", LORA, "parameter"), "model.layers.0.mlp.down_proj.weight"),
    ("HLS109", ("model", "model_type"), "a\u200c"),
    ("HLS110", ("modules", LORA, "rank"), module(LORA, rank=64, alpha=128)),
    ("HLS201", ("totals", "full_params"), 1),
    ("HLS201", ("totals", "candidate_modules"), 7),
    ("HLS201", ("model", "params"), 1),
    ("HLS202", ("budget", "spent"), lambda plan: plan["budget"].update(asked="0.1")),
    ("HLS203", ("budget", "asked"), "much"),
    ("HLS203", ("budget", "limit"), 5),
    ("HLS203", ("budget", "realized_parameter_share"), 0.5),
    ("HLS204", ("memory", "total_bytes"), 5),
    ("HLS205", ("modules", 5, "position"), 4),
    ("HLS205", ("modules", 5, "score"), 1e6),
    ("HLS206", ("modules", 5, "params"), 10),
    ("HLS206", ("modules", 5, "trained_params"), 10),
    ("HLS207", ("modules", LORA, "alpha"), 99),
    ("HLS208", ("modules",), every(mode="frozen", rank=None, alpha=None, trained_params=0)),
    ("HLS209", ("stability", "borderline_modules"), 11),
    ("HLS209", ("stability", "mean_reselection"), 0.123),
    ("HLS501", ("modules", 0, "score"), every(score=0.0)),
    ("HLS502", ("modules", 0, "score"), every(score=2.5)),
    ("HLS503", ("modules", LORA, "score"), None),
    ("HLS504", ("modules", FULL, "mode"), every(score=-1.0)),
    ("HLS505", ("modules", LORA, "mode"), swapped),
    ("HLS506", ("stability", "clear_modules"), 0),
    ("HLS704", ("provenance", "hlscore_version"), "99.0.0"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "path", "wrong"),
    BROKEN,
    ids=[f"{code}-{'.'.join(map(str, path))}" for code, path, _ in BROKEN],
)
def test_what_is_broken_is_found_on_its_line(
    code: str, path: tuple[Any, ...], wrong: Any, tmp_path: Path
) -> None:
    document = made()
    if callable(wrong):
        wrong(document)
    else:
        document = put(document, path, wrong)
    found = findings(write(document, tmp_path / "plan.json"))
    (at,) = [item for item in found if (item["code"], tuple(item["path"])) == (code, path)]
    assert at["line"] == line_of(document, path)
    assert (at["level"], at["remedy"]) == (RULES[code].level, RULES[code].remedy)
    assert at["message"].endswith(".")


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('{"a": 1,\n "b": }', 2, 7),
        ('{"schema_version": 1,\n  "a": 1,\n  "a": 1}', None, None),
        ('{\n "a": NaN}', None, None),
        ("", 1, 1),
        ("[" * 50 + "]" * 50, None, None),
    ],
)
def test_broken_json_is_one_finding(
    text: str, line: int | None, column: int | None, tmp_path: Path
) -> None:
    (tmp_path / "plan.json").write_text(text)
    (found,) = findings(tmp_path / "plan.json")
    assert (found["code"], found["line"], found["column"]) == ("HLS101", line, column)


def test_every_rule_without_options_is_broken_above() -> None:
    always = {code for code, rule in RULES.items() if not rule.when}
    assert always - {code for code, _, _ in BROKEN} == {"HLS101"}


@pytest.mark.parametrize(
    "given",
    [{}, {"budget": "0.4p"}, {"budget": "0.4p", "ranks": (2, 4, 8)}, {"budget": "90MiB"},
     {"budget": "90MiB", "ranks": (2, 8)}, {"budget": "0.02M"}, {"budget": "1.0"},
     {"score": "tail"}, {"rank": 16}, {"alpha": 7}, {"locks": ("*q_proj=frozen", "*up_proj=full")},
     {"locks": ("*down_proj=rank:16",), "budget": "0.3p"},
     {"baseline": "all-lora"}, {"baseline": "lora-matched"}, {"baseline": "random"},
     {"memory": {"base_bits": 4}}],
    ids=str,
)  # fmt: skip
def test_what_hlscore_plans_passes(given: dict[str, Any], tmp_path: Path) -> None:
    if "memory" in given:
        given = {"memory": MemorySettings(**given["memory"])}
    assert findings(write(made(**given), tmp_path / "plan.json"), "--strict") == []


def test_a_baseline_that_trains_everything_may_exceed_its_budget(tmp_path: Path) -> None:
    (found,) = findings(write(made(baseline="all-full"), tmp_path / "plan.json"))
    assert (found["code"], found["level"]) == ("HLS202", "warning")


def test_warnings_fail_only_when_strict_and_codes_can_be_left_out(tmp_path: Path) -> None:
    document = made()
    document["modules"][LORA]["alpha"] = 99
    path = write(document, tmp_path / "plan.json")
    assert hlscore("check", path).code == 0
    assert hlscore("check", path, "--strict").code == 1
    assert hlscore("check", path, "--strict", "--ignore", "hls207").code == 0
    result = json.loads(hlscore("check", path, "--ignore", "HLS207", "--json").out)
    assert "HLS207" not in result["files"][0]["rules"]


def test_many_findings_of_a_code_are_counted(tmp_path: Path) -> None:
    document = made()
    for item in document["modules"]:
        item["params"] += 1
    found = findings(write(document, tmp_path / "plan.json"))
    messages = [item["message"] for item in found if item["code"] == "HLS206"]
    assert ["more like it" in message for message in messages].count(True) == 1
    assert len(messages) == 5


def test_every_code_is_explained() -> None:
    everything = hlscore("check", "--explain", "all")
    assert everything.code == 0
    for code, rule in RULES.items():
        for text in (code, rule.asks, rule.why, rule.remedy):
            assert text in everything.out
    one = hlscore("check", "--explain", "hls202")
    assert one.code == 0
    assert one.out.strip() in everything.out
    listed = json.loads(hlscore("check", "--explain", "all", "--json").out)
    assert [item["code"] for item in listed] == list(RULES)
    assert hlscore("check", "--explain", "HLS999").code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("none.json",), 3, "no file"),
        (("README.md",), 3, "is not a plan or a score report"),
        ((".",), 3, "is a directory"),
        ((), 2, "No plan is named"),
        (("plan.json", "--for", "nothing"), 2, "nothing"),
        (("plan.json", "--ignore", "HLS9"), 2, "HLS9"),
        (("plan.json", "--max-changed", "3"), 2, "--baseline"),
        (("plan.json", "--weights"), 2, "--model"),
        (("plan.json", "--min-tau", "2"), 2, "min-tau"),
        (("plan.json", "--max-borderline", "some"), 2, "--max-borderline"),
        (("plan.json", "--max-age", "old"), 2, "--max-age"),
        (("plan.json", "--baseline", "none.json"), 3, "none.json"),
        (("plan.json", "--model", "none"), 3, "none"),
        (("plan.json", "--config", "none.toml"), 2, "There is no file 'none.toml'."),
    ],
)
def test_wrong_use_is_one_line(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write(made(), tmp_path / "plan.json")
    (tmp_path / "README.md").write_text("# A title\n")
    monkeypatch.chdir(tmp_path)
    found = hlscore("check", *arguments)
    assert found.code == code, found
    assert message in found.message
