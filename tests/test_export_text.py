"""Text of exported files: whatever is written is read back, by every format's own parser."""

from __future__ import annotations

import ast
import json
import tomllib
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from hlscore.exporters.quoting import block, comment, printable, quoted, scalar
from hlscore.exporters.yaml_text import yaml_text


@given(st.recursive(
    st.text() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner.filter(lambda item: not isinstance(item, list | dict)), min_size=1)
    | st.dictionaries(st.text(min_size=1), inner, min_size=1),
    max_leaves=8,
))  # fmt: skip
def test_yaml_reads_back(value: Any) -> None:
    text = yaml_text(("a comment", ""), {"key": value})
    assert yaml.safe_load(text) == {"key": value}


@given(st.text())
def test_quoted_strings_read_back_everywhere(text: str) -> None:
    literal = quoted(text)
    assert json.loads(literal) == text
    assert tomllib.loads(f"key = {literal}")["key"] == text
    assert ast.literal_eval(literal) == text


@given(st.lists(st.text()) | st.dictionaries(st.text(), st.integers()))
def test_blocks_read_back_in_json_and_python(value: Any) -> None:
    assert json.loads(block(value)) == ast.literal_eval(block(value)) == value


@given(st.text(st.characters()))
def test_printable_texts_stay_on_their_line(text: str) -> None:
    assert printable(text).isprintable()
    assert not text.isprintable() or printable(text) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_read_back_everywhere(number: float) -> None:
    literal = scalar(number)
    assert json.loads(literal) == tomllib.loads(f"key = {literal}")["key"] == number
    assert yaml.safe_load(literal) == number


@given(st.lists(st.text()))
def test_comments_cannot_be_left(lines: list[str]) -> None:
    text = comment(lines)
    assert all(line.startswith("#") for line in text.splitlines())
    assert yaml.safe_load(text) is None
    assert tomllib.loads(text) == {}
