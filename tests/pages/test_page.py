"""The report as text: HTML that loads nothing, Markdown as a parser reads it, names escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from markdown_it import MarkdownIt
from report_content import HOSTILE, Page, content, hostile_report, joined
from reports import report

from hlscore.pages.escaping import name, prose
from hlscore.pages.page import html_text, markdown_text
from hlscore.pages.vega import chart_script, inline, signed
from hlscore.wording import measure


@pytest.fixture(scope="module")
def hostile() -> str:
    return html_text(joined(hostile_report(), budget="0.2"), "0")


def test_the_policy_allows_two_scripts_and_nothing_loaded() -> None:
    text = html_text(content(10), chart_script())
    page = Page(text)
    (policy,) = [
        given["content"] or ""
        for tag, given in page.tags
        if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
        for code in re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    ]
    assert rules["script-src"].split() == hashes
    assert len(hashes) == 2
    assert "unsafe-eval" not in policy
    for _, given in page.tags:
        assert not given.keys() & {"src", "srcset", "action", "data", "poster"}
        assert (given.get("href") or "#").startswith(("#", "data:,"))
        assert not any(name.startswith("on") for name in given)
    assert "@import" not in text.split("<script", 1)[0]
    assert "url(" not in text.split("<script", 1)[0]


def test_hostile_names_stay_text(hostile: str) -> None:
    page = Page(hostile)
    assert [kind for kind, _ in page.scripts] == ["application/json", "", ""]
    assert "img" not in {tag for tag, _ in page.tags}
    names = {cells[1] for cells in page.tables["modules"][1:]}
    assert names == {*HOSTILE, f"skipped {HOSTILE[0]}"}
    assert "alert(1)</script>" not in hostile.replace("&lt;/script&gt;", "")
    assert "<" not in page.scripts[0][1]  # JSON on the page cannot end its script
    data = json.loads(page.scripts[0][1])
    kinds = next(chart for chart in data["charts"] if chart["name"] == "heat")["columns"]["kind"]
    assert set(kinds) == {signed(name) for name in HOSTILE}
    for letter in ("\x07", "\u202e"):
        assert letter not in hostile


def test_a_script_cannot_end_itself() -> None:
    assert inline('a = "</script>"; b = "<!--"; c = a</x/') == (
        'a = "\\x3c/script>"; b = "\\x3c!--"; c = a</x/'
    )
    assert inline("'</SCRIPT'") == "'\\x3c/SCRIPT'"


def test_two_thousand_modules_stay_below_three_megabytes() -> None:
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
    text = html_text(joined(replace(found, rows=rows)), chart_script())
    assert len(text.encode()) < 2_500_000
    assert len(Page(text).tables["modules"]) == 2_001


def test_headings_rise_by_one_and_charts_are_described() -> None:
    text = html_text(content(30), "0")
    page = Page(text)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    charts = [given for _, given in page.tags if given.get("class") == "chart"]
    assert len(charts) == 7
    for given in charts:
        assert given["role"] == "img"
        assert len(given["aria-label"] or "") > 60
    tags = [tag for tag, _ in page.tags]
    assert tags.count("main") == tags.count("header") == 1
    ids = [given["id"] for _, given in page.tags if "id" in given]
    assert len(set(ids)) == len(ids)
    labelled = {given["for"] for tag, given in page.tags if tag == "label"}
    assert {given["id"] for tag, given in page.tags if tag in ("input", "select")} <= labelled
    # It says that nothing is proven, and what flatters.
    for part in ("is not proven", "plain LoRA", "upper bound", "biases this curve upwards"):
        assert part in page.text
    assert "noscript" in tags


def test_the_page_holds_every_module_with_the_numbers_of_the_report() -> None:
    found = content(30, budget="0.2", locks=("*.3.*=frozen",))
    page = Page(html_text(found, "0"))
    rows = page.tables["modules"][1:]
    assert len(rows) == 31
    plan = {item.module: item for item in found.plan.modules}
    original = {row.module: row for row in found.report.rows}
    for number, cells in enumerate(rows[:-1], start=1):
        item, row = plan[cells[1]], original[cells[1]]
        trained = {"full": "full", "lora": f"LoRA {item.rank}", "frozen": "frozen"}[item.mode]
        share = item.selection_probability
        assert cells[0] == str(number) == str(item.position)
        assert cells[2] == measure(row.hls)
        assert cells[5] == ("-" if share is None else f"{100 * share:.0f} %")
        assert cells[6] == f"{row.out_features} x {row.in_features}"
        assert cells[7] == f"{row.n_params:,}"
        assert cells[8] == trained
        assert cells[9] == f"{item.trained_params:,}"
        assert ("locked" in cells[10]) == item.locked
    assert rows[-1][:3] == ["-", "lm_head", "-"]
    assert rows[-1][8:] == ["left out", "0", "output head: ranked with --head"]

    (data,) = [json.loads(text) for kind, text in page.scripts if kind == "application/json"]
    curves = data["curves"]
    assert curves["ranks"] == list(found.lines[0].row.curve_ranks)
    for line, tail, hls in zip(found.lines, curves["tail"], curves["hls"], strict=True):
        assert tail == pytest.approx(line.row.tail_curve, rel=0.005)
        assert hls == pytest.approx(line.row.hls_curve, rel=0.005)


def rendered(text: str) -> Page:
    """What a parser of CommonMark with GitHub's tables reads."""
    return Page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_reads_as_itself_in_markdown(text: str) -> None:
    for written in (prose(text), name(text), f"| a |\n| - |\n| {name(text)} |"):
        words = rendered(written)
        assert text in words.text
        elements = {tag for tag, _ in words.tags}
        assert elements <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td"}
    for link in ("@", "://", "www."):
        assert link not in prose(text)


def test_plain_names_stay_readable_in_markdown() -> None:
    assert name("model.layers.0.self_attn.q_proj") == "`model.layers.0.self_attn.q_proj`"
    plain = "66 % of cases (--samples), 1.5 x: fine."
    assert prose(plain) == plain


def test_a_hostile_report_has_only_the_elements_of_a_report_in_markdown() -> None:
    words = rendered(markdown_text(joined(hostile_report(), budget="0.2")))
    assert {tag for tag, _ in words.tags} <= {
        "h1", "h2", "p", "strong", "code", "table", "thead", "tbody", "tr", "th", "td", "ul", "li",
        "blockquote",
    }  # fmt: skip
    for hostile in HOSTILE:
        assert hostile in words.text


def test_the_table_of_markdown_holds_the_highest_modules() -> None:
    found = content(60, budget="0.2")
    text = markdown_text(found)
    rows = {cells[1]: cells for cells in rendered(text).tables[""] if len(cells) == 11}
    for line in found.lines[:40]:
        cells = rows[line.row.module]
        assert cells[0] == str(line.row.rank)
        assert cells[2] == measure(line.score)
        assert cells[8] == ("full" if line.full else "LoRA 4")
    assert found.lines[40].row.module not in rows
    assert "20 more modules" in text
