"""The HTML page as text: nothing loaded, nothing executed but two scripts, names escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from report_content import HOSTILE, content, hostile_report, planned, read_page
from reports import report

from hlscore.pages.content import join
from hlscore.pages.page import html_text
from hlscore.pages.vega import chart_script, inline, signed


@pytest.fixture(scope="module")
def bundle() -> str:
    return chart_script()


@pytest.fixture(scope="module")
def hostile() -> str:
    found = hostile_report()
    return html_text(join(found, planned(found, budget="0.2"), planned_here=False), "0")


def test_the_policy_allows_two_scripts_and_nothing_loaded(bundle: str) -> None:
    text = html_text(content(10), bundle)
    page = read_page(text)
    (policy,) = [
        given["content"]
        for tag, given in page.tags
        if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    allowed = rules["script-src"].split()
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
        for code in re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    ]
    assert allowed == hashes
    assert len(hashes) == 2
    assert "unsafe-eval" not in policy
    loads = [
        (tag, value)
        for tag, given in page.tags
        for name, value in given.items()
        if name in ("src", "srcset", "action", "data", "poster")
        or (name == "href" and not (value or "").startswith(("#", "data:,")))
    ]
    assert loads == []
    assert not [given for _, given in page.tags if any(name.startswith("on") for name in given)]
    assert "@import" not in text.split("<script", 1)[0]
    assert "url(" not in text.split("<script", 1)[0]


def test_hostile_names_stay_text(hostile: str) -> None:
    page = read_page(hostile)
    assert [kind for kind, _ in page.scripts] == ["application/json", "", ""]
    assert "img" not in {tag for tag, _ in page.tags}
    names = {cells[1] for cells in page.tables["modules"][1:]}
    assert names == {*HOSTILE, f"skipped {HOSTILE[0]}"}
    assert "alert(1)</script>" not in hostile.replace("&lt;/script&gt;", "")
    data = json.loads(page.scripts[0][1])
    kinds = next(chart for chart in data["charts"] if chart["name"] == "heat")["columns"]["kind"]
    assert set(kinds) == {signed(name) for name in HOSTILE}
    for letter in ("\x07", "\u202e"):
        assert letter not in hostile


def test_json_on_the_page_cannot_end_its_script(hostile: str) -> None:
    raw = hostile.split('<script type="application/json" id="data">')[1].split("</script>", 1)[0]
    assert "<" not in raw
    json.loads(raw)


def test_a_script_cannot_end_itself() -> None:
    assert inline('a = "</script>"; b = "<!--"; c = a</x/') == (
        'a = "\\x3c/script>"; b = "\\x3c!--"; c = a</x/'
    )
    assert inline("'</SCRIPT'") == "'\\x3c/SCRIPT'"


def test_two_thousand_modules_stay_below_three_megabytes(bundle: str) -> None:
    found = report(2_000, resamples=5)
    ranks = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)  # as with --rank 64
    draws = random.Random(0)
    rows = tuple(
        replace(
            row,
            module=row.module.replace("model.", "model.language_model."),
            curve_ranks=ranks,
            **{
                name: tuple(draws.lognormvariate(-9, 2) for _ in ranks)
                for name in ("tail_curve", "tail_curve_errors", "hls_curve", "hls_curve_errors")
            },
        )
        for row in found.candidates
    )
    found = replace(found, rows=rows)
    text = html_text(join(found, planned(found), planned_here=False), bundle)
    assert len(text.encode()) < 2_500_000
    assert len(read_page(text).tables["modules"]) == 2_001


def test_headings_rise_by_one_and_charts_are_described() -> None:
    text = html_text(content(30), "0")
    page = read_page(text)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    charts = [given for tag, given in page.tags if (given.get("class") or "") == "chart"]
    assert len(charts) == 7
    for given in charts:
        assert given["role"] == "img"
        assert len(given["aria-label"] or "") > 60
    tags = [tag for tag, _ in page.tags]
    assert tags.count("main") == tags.count("header") == 1
    ids = [given["id"] for _, given in page.tags if "id" in given]
    assert len(set(ids)) == len(ids)
    labelled = {given["for"] for tag, given in page.tags if tag == "label"}
    controls = {given["id"] for tag, given in page.tags if tag in ("input", "select")}
    assert controls <= labelled


def test_the_page_says_that_nothing_is_proven_and_what_flatters() -> None:
    text = html_text(content(30), "0")
    for part in (
        "is not proven",
        "plain LoRA",
        "upper bound",
        "biases this curve upwards",
        "noscript",
    ):
        assert part in text
