"""Text and names in GitHub's Markdown; the Action needs them without any library."""

from __future__ import annotations

import html
import re

_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")


def prose(text: str) -> str:
    """A sentence in which nothing is taken for Markdown, HTML, a link or a mention."""
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"[\\`*_{}\[\]|~#!^$]|:(?=\S)", lambda found: f"&#{ord(found[0])};", escaped)
    escaped = re.sub(r"(?i)www\.", lambda found: f"{found[0][:3]}&#46;", escaped)
    # A comment parts the text in which GitHub looks for addresses and mentions.
    escaped = escaped.replace("@", "<!-- -->&#64;<!-- -->")
    # Numbered items, bullets and headings at the start of a line.
    escaped = re.sub(r"^(\d+)([.)])(?=\s)", lambda item: f"{item[1]}&#{ord(item[2])};", escaped)
    return re.sub(r"^[-+=](?=[-+=\s]|$)", lambda item: f"&#{ord(item[0])};", escaped)


def name(text: str) -> str:
    """A name as code that reads as the name, whatever it holds."""
    return f"`{text}`" if _PLAIN.fullmatch(text) else f"<code>{prose(text)}</code>"
