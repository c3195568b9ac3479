"""The report as Markdown: what a parser of it reads is what the report says."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt
from report_content import HOSTILE, Tables, content, hostile_report, planned, read_page

from hlscore.pages.content import join
from hlscore.pages.escaping import name, prose
from hlscore.pages.page import markdown_text
from hlscore.wording import measure


def rendered(text: str) -> Tables:
    """What a parser of CommonMark with GitHub's tables reads."""
    return read_page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


def elements(page: Tables) -> set[str]:
    return {tag for tag, _ in page.tags}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_reads_as_itself(text: str) -> None:
    for written in (prose(text), name(text), f"| a |\n| - |\n| {name(text)} |"):
        words = rendered(written)
        assert text in words.text
        assert elements(words) <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td"}
    assert "@" not in prose(text)
    assert "://" not in prose(text)
    assert "www." not in prose(text)


def test_plain_names_stay_readable() -> None:
    assert name("model.layers.0.self_attn.q_proj") == "`model.layers.0.self_attn.q_proj`"
    assert prose("66 % of cases (--samples), 1.5 x: fine.") == (
        "66 % of cases (--samples), 1.5 x: fine."
    )


def test_a_hostile_report_has_only_the_elements_of_a_report() -> None:
    found = hostile_report()
    text = markdown_text(join(found, planned(found, budget="0.2"), planned_here=False))
    words = rendered(text)
    assert elements(words) <= {"h1", "h2", "p", "strong", "code", "table", "thead", "tbody", "tr",
                               "th", "td", "ul", "li", "blockquote"}  # fmt: skip
    for hostile in HOSTILE:
        assert hostile in words.text


def test_the_table_holds_the_highest_modules() -> None:
    found = content(60, budget="0.2")
    rows = {
        cells[1]: cells for cells in rendered(markdown_text(found)).tables[""] if len(cells) == 11
    }
    for line in found.lines[:40]:
        cells = rows[line.row.module]
        assert cells[0] == str(line.row.rank)
        assert cells[2] == measure(line.score)
        assert cells[8] == ("full" if line.full else "LoRA 4")
    assert found.lines[40].row.module not in rows
    assert "20 more modules" in markdown_text(found)
