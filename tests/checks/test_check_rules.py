"""Every rule of `hlscore check`, broken one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from check_desk import Change, Document, findings, line_of, made, write
from console import hlscore

from hlscore.checks.rule import RULES

GONE = object()


def put(*path: Any, to: Any) -> Change:
    """A change of one value; `GONE` takes it out."""

    def change(document: Document) -> None:
        inner: Any = document
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = to
        if to is GONE:
            del inner[path[-1]]

    return change


def update(place: int, **values: Any) -> Change:
    """A change of some fields of one module."""
    return lambda document: document["modules"][place].update(values)


def every(**values: Any) -> Change:
    """A change of some fields of all modules."""

    def change(document: Document) -> None:
        for item in document["modules"]:
            item.update(values)

    return change


def twice(document: Document) -> None:
    document["modules"].append(dict(document["modules"][0]))


def swapped(document: Document) -> None:
    """The first and the last module change their modes."""
    first, last = document["modules"][0], document["modules"][-1]
    for name in ("mode", "rank", "alpha", "trained_params"):
        first[name], last[name] = last[name], first[name]


FULL, LORA = 0, 11  # places of a module in full and of one with LoRA in the plan of `made`
BROKEN: list[tuple[str, Change, tuple[Any, ...]]] = [
    ("HLS102", put("schema_version", to=99), ("schema_version",)),
    ("HLS103", put("modules", 3, "score", to="high"), ("modules", 3, "score")),
    ("HLS103", put("modules", 3, "extra", to=1), ("modules", 3, "extra")),
    ("HLS103", put("budget", "limit", to=GONE), ("budget", "limit")),
    ("HLS103", put("modules", to={}), ("modules",)),
    ("HLS105", twice, ("modules", 12, "module")),
    ("HLS106", update(LORA, module="model.layers.0.mlp.down_proj.inner",
                      parameter="model.layers.0.mlp.down_proj.inner.weight"),
     ("modules", LORA, "module")),
    ("HLS106", put("skipped", 0, "module", to="model.layers.0.self_attn.q_proj"),
     ("skipped", 0, "module")),
    ("HLS107", update(FULL, rank=4, alpha=8), ("modules", FULL, "rank")),
    ("HLS108", update(LORA, parameter="model.layers.0.mlp.down_proj.weight"),
     ("modules", LORA, "parameter")),
    ("HLS109", put("model", "model_type", to="a\u200c"), ("model", "model_type")),
    ("HLS110", update(LORA, rank=64, alpha=128), ("modules", LORA, "rank")),
    ("HLS201", put("totals", "full_params", to=1), ("totals", "full_params")),
    ("HLS201", put("totals", "candidate_modules", to=7), ("totals", "candidate_modules")),
    ("HLS201", put("model", "params", to=1), ("model", "params")),
    ("HLS202", put("budget", "asked", to="0.1"), ("budget", "spent")),
    ("HLS203", put("budget", "asked", to="much"), ("budget", "asked")),
    ("HLS203", put("budget", "limit", to=5), ("budget", "limit")),
    ("HLS203", put("budget", "realized_parameter_share", to=0.5),
     ("budget", "realized_parameter_share")),
    ("HLS204", put("memory", "total_bytes", to=5), ("memory", "total_bytes")),
    ("HLS205", update(5, position=4), ("modules", 5, "position")),
    ("HLS205", update(5, score=1e6), ("modules", 5, "score")),
    ("HLS206", update(5, params=10), ("modules", 5, "params")),
    ("HLS206", update(5, trained_params=10), ("modules", 5, "trained_params")),
    ("HLS207", update(LORA, alpha=99), ("modules", LORA, "alpha")),
    ("HLS208", every(mode="frozen", rank=None, alpha=None, trained_params=0), ("modules",)),
    ("HLS209", put("stability", "borderline_modules", to=11), ("stability", "borderline_modules")),
    ("HLS209", put("stability", "mean_reselection", to=0.123), ("stability", "mean_reselection")),
    ("HLS501", every(score=0.0), ("modules", 0, "score")),
    ("HLS502", every(score=2.5), ("modules", 0, "score")),
    ("HLS503", update(LORA, score=None), ("modules", LORA, "score")),
    ("HLS504", every(score=-1.0), ("modules", FULL, "mode")),
    ("HLS505", swapped, ("modules", LORA, "mode")),
    ("HLS506", put("stability", "clear_modules", to=0), ("stability", "clear_modules")),
    ("HLS507", put("provenance", "probes", "objective", to="grpo"),
     ("provenance", "probes", "objective")),
    ("HLS704", put("provenance", "hlscore_version", to="99.0.0"),
     ("provenance", "hlscore_version")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "change", "path"),
    BROKEN,
    ids=[f"{code}-{'.'.join(map(str, path))}" for code, _, path in BROKEN],
)
def test_what_is_broken_is_found_on_its_line(
    code: str, change: Change, path: tuple[Any, ...], tmp_path: Path
) -> None:
    document = made()
    change(document)
    found = findings(write(document, tmp_path / "plan.json"))
    hits = [item for item in found if item["code"] == code]
    assert hits, found
    at = [item for item in hits if tuple(item["path"]) == path]
    assert at, hits
    assert at[0]["line"] == line_of(document, path)
    assert at[0]["level"] == RULES[code].level
    assert at[0]["remedy"] == RULES[code].remedy
    assert at[0]["message"].endswith(".")


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('{"a": 1,\n "b": }', 2, 7),
        ('{"schema_version": 1,\n  "a": 1,\n  "a": 1}', 3, None),
        ('{\n "a": NaN}', 2, None),
        ("", 1, 1),
        ("[" * 50 + "]" * 50, None, None),
    ],
)
def test_broken_json_is_one_finding(
    text: str, line: int | None, column: int | None, tmp_path: Path
) -> None:
    (tmp_path / "plan.json").write_text(text)
    (found,) = findings(tmp_path / "plan.json")
    assert found["code"] == "HLS101"
    if line is not None and found["line"] is not None:
        assert found["line"] == line
    if column is not None:
        assert found["column"] == column


def test_a_file_of_another_kind_cannot_be_checked(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A title\n")
    found = hlscore("check", tmp_path / "README.md")
    assert (found.code, found.out) == (3, "")
    assert "is not a plan or a score report" in found.message


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
    from hlscore.settings import MemorySettings

    if "memory" in given:
        given = {"memory": MemorySettings(**given["memory"])}
    assert findings(write(made(**given), tmp_path / "plan.json"), "--strict") == []


def test_a_baseline_that_trains_everything_is_told_to_exceed_its_budget(tmp_path: Path) -> None:
    path = write(made(baseline="all-full"), tmp_path / "plan.json")
    (found,) = findings(path)
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
    hits = [item for item in found if item["code"] == "HLS206"]
    assert len(hits) == 5
    assert sum("more like it" in item["message"] for item in hits) == 1


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
        ((".",), 3, "is a directory"),
        ((), 2, "No plan is named"),
        (("plan.json", "--for", "nothing"), 2, "nothing"),
        (("plan.json", "--ignore", "HLS9"), 2, "HLS9"),
        (("plan.json", "--max-changed", "3"), 2, "--baseline"),
        (("plan.json", "--weights"), 2, "--model"),
        (("plan.json", "--min-tau", "2"), 2, "--min-tau|min-tau"),
        (("plan.json", "--max-borderline", "some"), 2, "--max-borderline"),
        (("plan.json", "--max-age", "old"), 2, "--max-age"),
        (("plan.json", "--baseline", "none.json"), 3, "none.json"),
        (("plan.json", "--model", "none"), 3, "none"),
        (("plan.json", "--config", "none.toml"), 2, "none.toml"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import re

    write(made(), tmp_path / "plan.json")
    monkeypatch.chdir(tmp_path)
    found = hlscore("check", *arguments)
    assert found.code == code, found
    assert re.search(message, found.message), found.message
