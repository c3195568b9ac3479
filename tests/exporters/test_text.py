"""Text of exported files: whatever is written is read back, by every format's own parser."""

from __future__ import annotations

import tomllib
from typing import Any

import yaml
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from plans import plan_for

from hlscore.exporters.exporter import heading, yaml_text
from hlscore.exporters.formats import prime_rl
from hlscore.exporters.limits import PEFT_LIMITS

PLAN = plan_for(FAMILIES["llama"].build(), ())


# Plans hold no text that cannot be printed.
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")))


@given(st.recursive(
    TEXTS | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner.filter(lambda item: not isinstance(item, list | dict)), min_size=1)
    | st.dictionaries(TEXTS.filter(bool), inner, min_size=1),
    max_leaves=8,
))  # fmt: skip
def test_yaml_reads_back(value: Any) -> None:
    text = yaml_text("# a comment\n", {"key": value})
    assert yaml.safe_load(text) == {"key": value}


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_toml_reads_back(text: str, number: float) -> None:
    values = {"text": text, "list": [text, text], "number": number, "flag": True, "none": []}
    assert tomllib.loads(prime_rl._table("a.b", values)) == {"a": {"b": values}}


@given(st.lists(st.text()))
def test_comments_cannot_be_left(lines: list[str]) -> None:
    text = heading(PLAN, PEFT_LIMITS, lines)
    assert all(line.startswith("#") for line in text.splitlines())
    assert yaml.safe_load(text) is None
    assert tomllib.loads(text) == {}
