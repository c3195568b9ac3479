"""Strict JSON, and the places of its values."""

from __future__ import annotations

import json
from typing import Any

from broken_plans import values
from hypothesis import given, settings
from hypothesis import strategies as st

from hlscore.artifacts.json_file import Place, find_places

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.text('ab\\",:{}[]é\n', max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text('ab\\",:{}[]é\n', max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(JSON, st.sampled_from([None, 1, 4]), st.booleans())
def test_each_value_is_found_where_it_stands(
    document: Any, indent: int | None, escaped: bool
) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=escaped)
    wanted = values(document)
    lines = text.split("\n")
    decode = json.JSONDecoder().raw_decode
    for path, place in find_places(text, [*wanted]).items():
        rest = "\n".join([lines[place.line - 1][place.column - 1 :], *lines[place.line :]])
        found, end = decode(rest)
        if path and isinstance(path[-1], str):
            assert found == path[-1]
            rest = rest[end:].lstrip()
            assert rest[0] == ":"
            found, _ = decode(rest[1:].lstrip())
        assert found == wanted[path]


def test_a_path_that_leads_nowhere_has_the_place_of_what_is_there() -> None:
    text = '{\n  "a": {\n    "b": 1\n  }\n}'
    found = find_places(text, [("a", "c", 3), ("a", "b"), ("x",)])
    assert found == {
        ("a", "c", 3): Place(line=2, column=3),
        ("a", "b"): Place(line=3, column=5),
        ("x",): Place(line=1, column=1),
    }


def test_places_in_a_large_file_are_found() -> None:
    text = json.dumps({"modules": [dict.fromkeys("abcdefghijklmnopqrstuv", 1)] * 10_000}, indent=2)
    found = find_places(text, [("modules", 9_999, "v"), ("modules", 5, "a")])
    assert found["modules", 5, "a"].line == 3 + 5 * 24 + 1
    assert found["modules", 9_999, "v"].line == 3 + 9_999 * 24 + 22
