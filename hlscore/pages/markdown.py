"""The report as Markdown, for a pull request or an issue: no charts, no library for them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from hlscore.pages import facts, sentences
from hlscore.pages.board import Board
from hlscore.pages.content import Content
from hlscore.pages.figures import bytes_by_use
from hlscore.pages.module_charts import TOP
from hlscore.pages.table import COLUMNS, skipped_cells, table_cells
from hlscore.views.wording import memory, percent, short

_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
_MOST_SKIPPED = 20


def markdown_text(board: Board) -> str:
    """Write the report as GitHub's Markdown.

    Args:
        board: Content and charts; of the charts only the numbers are used.
    """
    content = board.content
    parts = [
        f"# {prose(sentences.heading(content))}",
        f"**{prose(sentences.headline(content))}** {prose(sentences.certainty(content))}",
        prose(sentences.origin(content)),
        f"> **What is proven and what is not.** {prose(sentences.unproven(content))}",
        "## What was run",
        _pairs(facts.what_was_run(content)),
        f"## The {min(TOP, len(content.lines))} highest of {len(content.lines):,} modules",
        _modules(content),
        prose(sentences.bars_caption(content)) if content.replicates.shape[1] else "",
        "## How stable the choice is",
        prose(sentences.stability_caption(content)),
        "## What a budget reaches",
        *_reach(board),
        "## What it costs",
        prose(sentences.equal_lora(content)),
        _memory(board),
        prose(sentences.memory_caption(content, board.ways)),
        *_skipped(content),
        *_notes(content),
        "## Where the numbers come from",
        _pairs(facts.provenance(content)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def prose(text: str) -> str:
    """Write a sentence so that nothing in it is taken for Markdown, HTML, a link or a mention.

    Args:
        text: A sentence; names in it may be hostile.
    """
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"[\\`*_{}\[\]|~#!^$]|:(?=\S)", lambda found: f"&#{ord(found[0])};", escaped)
    escaped = re.sub(r"(?i)www\.", lambda found: f"{found[0][:3]}&#46;", escaped)
    # A comment parts the text in which GitHub looks for addresses and mentions.
    escaped = escaped.replace("@", "<!-- -->&#64;<!-- -->")
    return re.sub(r"^(\d+)([.)])(?=\s)|^([-+=])(?=[-+=\s]|$)", _first_letters, escaped)


def _first_letters(found: re.Match[str]) -> str:
    if found[3]:
        return f"&#{ord(found[3])};"
    return f"{found[1]}&#{ord(found[2])};"


def name(text: str) -> str:
    """Write a name as code that reads as the name, whatever it holds."""
    return f"`{text}`" if _PLAIN.fullmatch(text) else f"<code>{prose(text)}</code>"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int]) -> str:
    """A table whose cells are Markdown already."""
    numbers = set(right)
    rule = ["---:" if at in numbers else "---" for at in range(len(titles))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *rows))


def _pairs(pairs: facts.Facts) -> str:
    return _table(("what", "value"), ((prose(label), prose(value)) for label, value in pairs),
                  right=())  # fmt: skip


def _modules(content: Content) -> str:
    titles = [content.score.name if item.title == "score" else item.title for item in COLUMNS]
    rows = [_cells(table_cells(line)) for line in content.lines[:TOP]]
    left = len(content.lines) - len(rows)
    numbers = [at for at, item in enumerate(COLUMNS) if item.sort == "number"]
    table = _table([prose(title) for title in titles], rows, right=numbers)
    return f"{table}\n\n{left:,} more modules are in the scores." if left else table


def _cells(cells: Sequence[str]) -> list[str]:
    return [name(cell) if at == 1 else prose(cell) for at, cell in enumerate(cells)]


def _reach(board: Board) -> tuple[str, ...]:
    if not board.reached:
        return ("No score is above zero: there is nothing that a budget could reach.",)
    rows = [
        (f"best {percent(share)}", *(percent(curve.at(share)) for curve in board.reached))
        for share in _SHARES
    ]
    titles = ("in full", "of the modules hold", "of the parameters hold")
    caption = sentences.reach_caption(*board.reached)
    return _table(titles, rows, right=(1, 2)), prose(caption)


def _memory(board: Board) -> str:
    uses = [bytes_by_use(way.use) for way in board.ways]
    rows = [(use, *(memory(found[use]) for found in uses)) for use in uses[0]]
    rows.append(("**in all**", *(f"**{memory(way.use.total_bytes)}**" for way in board.ways)))
    rows.append(("trained parameters", *(short(way.trained_params) for way in board.ways)))
    return _table(("memory", *(way.name for way in board.ways)), rows, right=(1, 2, 3))


def _skipped(content: Content) -> tuple[str, ...]:
    if not content.skipped:
        return ()
    rows = []
    for row in content.skipped[:_MOST_SKIPPED]:
        _, module, *_, reason = skipped_cells(row)
        rows.append((name(module), prose(reason)))
    left = len(content.skipped) - len(rows)
    more = (f"{left:,} more weights are left out.",) if left else ()
    return ("## Left out", _table(("weight", "reason"), rows, right=()), *more)


def _notes(content: Content) -> tuple[str, ...]:
    notes = sentences.notes(content)
    return ("## Notes", "\n".join(f"- {prose(note)}" for note in notes)) if notes else ()
