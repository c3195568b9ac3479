"""The report as Markdown: what a parser of it reads is what the report says."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt
from report_content import HOSTILE, content, hostile_report, planned

from hlscore.pages.content import join
from hlscore.pages.escaping import name, prose
from hlscore.pages.page import markdown_text
from hlscore.wording import measure


class Words(HTMLParser):
    """Text and tags of HTML, cells of tables apart."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, _: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


def rendered(text: str) -> Words:
    """What a parser of CommonMark with GitHub's tables reads."""
    words = Words()
    words.feed(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))
    return words


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_reads_as_itself(text: str) -> None:
    for written in (prose(text), name(text), f"| a |\n| - |\n| {name(text)} |"):
        words = rendered(written)
        assert text in words.text
        assert words.tags <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td"}
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
    assert words.tags <= {"h1", "h2", "p", "strong", "code", "table", "thead", "tbody", "tr", "th",
                          "td", "ul", "li", "blockquote"}  # fmt: skip
    for hostile in HOSTILE:
        assert hostile in words.text


def test_the_table_holds_the_highest_modules() -> None:
    found = content(60, budget="0.2")
    rows = {cells[1]: cells for cells in rendered(markdown_text(found)).rows if len(cells) == 11}
    for line in found.lines[:40]:
        cells = rows[line.row.module]
        assert cells[0] == str(line.row.rank)
        assert cells[2] == measure(line.score)
        assert cells[8] == ("full" if line.full else "LoRA 4")
    assert found.lines[40].row.module not in rows
    assert "20 more modules" in markdown_text(found)
