"""Thousands of damaged plans: `hlscore check` says so, in bounded time and memory."""

from __future__ import annotations

import copy
import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from broken_plans import Document, made, values, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hlscore.checks.run import check_plan
from hlscore.settings import CheckSettings, Limit
from hlscore.views.check import check_json, check_text
from hlscore.views.check_formats import github, junit, sarif

WHOLE = made()
KINDS = ["near"] * 4 + ["value", "gone", "key", "other", "copy"]
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")
NUMBERS = st.sampled_from(
    ["0", "-1", "1.5", "1e308", "-1e308", "1e999", "-0.0", str(2**53), str(2**63), "9" * 5000,
     "NaN", "-Infinity", "0x10", "1e-400"]
)  # fmt: skip
VALUES = (
    NUMBERS
    | st.sampled_from(["null", "true", "[]", "{}", '""', '"\\u001b[2J"', '"\\ud800"', '"</x>"'])
    | st.integers(1, 2000).map(lambda depth: "[" * depth + "]" * depth)
    | st.integers(1, 2000).map(lambda depth: '{"a":' * depth + "1" + "}" * depth)
    | st.text(max_size=8).map(json.dumps)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    ).map(json.dumps)
)


PLACES = [path for path in values(WHOLE) if path]


def inside(document: Document, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document


def near(value: Any, draw: st.DrawFn) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return max(0, value + draw(st.sampled_from([-1, 1, 1000])))
    if isinstance(value, float):
        return value * draw(st.sampled_from([0.0, -1.0, 0.5, 1.000001, 1e6]))
    if isinstance(value, str):
        return draw(st.sampled_from([f"{value}x", value[1:], "full", "lora", "frozen"]))
    if isinstance(value, list):
        return value[:1]
    return value


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A plan after one to three changes of its values, keys or bytes."""
    document = copy.deepcopy(WHOLE)
    raw: dict[str, str] = {}
    for number in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PLACES))
        try:
            holder = inside(document, path)
            kind = draw(st.sampled_from(KINDS))
            if kind == "value":
                mark = f"MARK{number}"
                raw[json.dumps(mark)] = draw(VALUES)
                holder[path[-1]] = mark
            elif kind == "near":
                holder[path[-1]] = near(holder[path[-1]], draw)
            elif kind == "gone":
                del holder[path[-1]]
            elif kind == "key":
                holder[draw(st.text(max_size=5))] = holder[path[-1]]
            elif kind == "copy":
                document["modules"].append(copy.deepcopy(document["modules"][0]))
            else:
                holder[path[-1]] = copy.deepcopy(inside(WHOLE, draw(st.sampled_from(PLACES))))
        except (KeyError, IndexError, TypeError, AttributeError):
            continue  # an earlier change took this place away
    text = json.dumps(document, indent=draw(st.sampled_from([None, 2])))
    for mark, value in raw.items():
        text = text.replace(mark, value)
    data = text.encode("utf-8", "surrogatepass")
    cut = draw(st.sampled_from([""] * 8 + ["end", "byte", "twice", "insert"]))
    at = draw(st.integers(0, len(data) - 1)) if cut else 0
    new = {"byte": st.binary(min_size=1, max_size=1), "insert": st.binary(max_size=8)}
    if cut == "end":
        return data[:at]
    if cut == "twice":
        return data.replace(b'"mode"', b'"mode": 1, "mode"', 1)
    return data[:at] + draw(new[cut]) + data[at + (cut == "byte") :] if cut else data


def test_damaged_plans_give_findings_or_one_error(tmp_path: Path) -> None:
    asked = CheckSettings(
        trainers=("peft", "axolotl", "trl"),
        min_selection_probability=0.9,
        max_borderline=Limit(text="1", count=1),
        max_drift="patch",
        baseline=write(made(budget="0.5"), tmp_path / "baseline.json"),
        max_changed=Limit(text="1", count=1),
        min_overlap=0.5,
        min_tau=0.5,
    )
    path = tmp_path / "plan.json"
    seen: dict[bool | None, int] = {}

    def check(data: bytes) -> None:
        path.write_bytes(data)
        result = check_plan(path, asked)
        for write_out in (check_text, check_json, github, junit, sarif):
            assert not STEERS.search(write_out([result]))
        lines = 1 + data.count(b"\n")
        assert all(item.place is None or item.place.line <= lines for item in result.findings)
        passed = None if result.plan is None else not any(
            item.rule.code < "HLS400" for item in result.findings
        )  # fmt: skip
        seen[passed] = seen.get(passed, 0) + 1

    settings(
        max_examples=1200, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )(given(damaged())(check))()  # fmt: skip
    assert sum(seen.values()) >= 1100
    assert min(seen[None], seen[False], seen[True]) > 25, seen


MODULE = json.dumps(WHOLE["modules"][0]).encode()
MODULES, NOTES = (b'{"schema_version": 1, "%s": [' % name for name in (b"modules", b"notes"))
LARGE = {  # a start, a piece that is repeated up to a size in MB, an end
    "100 MB of modules": (MODULES, MODULE + b",", 100, MODULE + b"]}"),
    "40 MB of modules": (MODULES, MODULE + b",", 40, MODULE + b"]}"),
    "100 MB of brackets": (b"", b"[", 100, b""),
    "60 MB of brackets": (b"", b"[", 60, b""),
    "60 MB of digits": (b'{"schema_version": ', b"9", 60, b"}"),
    "60 MB of text": (NOTES + b'"', b"x", 60, b'"]}'),
    "30 MB of keys": (b"{", b",".join(b'"%d":1' % n for n in range(3_000_000)), 0, b"}"),
    "60 MB of escapes": (NOTES + b'"', b"\\n", 60, b'"]}'),
    "60 MB of bad UTF-8": (b'{"a": "', b"\xff", 60, b'"}'),
}


@pytest.mark.parametrize("kind", LARGE)
def test_large_files_take_seconds_of_the_processor_and_less_than_a_gibibyte(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    start, piece, size, end = LARGE[kind]
    path.write_bytes(start + piece * max(1, size * 10**6 // len(piece)) + end)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        resource.setrlimit(resource.RLIMIT_CPU, (30, 30))

    found = subprocess.run(
        [sys.executable, "-m", "hlscore", "check", str(path)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert found.returncode == 1, found.stderr
    assert found.stderr == ""
    assert "HLS101" in found.stdout or "HLS103" in found.stdout
