"""The built-in verifiers, on answers as models and data sets write them."""

from __future__ import annotations

import pytest

from hlscore.errors import DataError, UsageError
from hlscore.rollouts.verifiers import (
    VERIFIERS,
    completion_text,
    final_answer,
    find_verifier,
    verify_all,
)

GSM8K = "She has 3 * 2 = <<3*2=6>>6 eggs left.\n#### 6"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3 + 3 = 6\n#### 6", "6"), ("#### 5\nno, wait\n#### 6", "6"),
        (r"so \boxed{5}, or rather \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"), (r"\boxed{5} and then \boxed{6", "5"),
        (r"\boxed {6}", "6"), ("Answer: 6\n", "6"), ("**Answer:** 6", "6"), ("Answer: **6**", "6"),
        ("final answer :\n\n 6", "6"), ("# -> 6", "6"), ("#### 6\nAnswer-like text", "6"),
        ("#### Step 2: add\nSo it is \\boxed{6}.", "6"), ("#### Result\nAnswer: 6", "6"),
        ("Answer: 5 \\boxed{6}", "6"), ("####", ""), ("nothing of the kind", None),
        (r"\boxed{", None),
    ],
)  # fmt: skip
def test_final_answer(text: str, found: str | None) -> None:
    answer = final_answer(text)
    assert (answer.text if answer.marked else None) == found


def test_final_answer_takes_linear_time() -> None:
    assert not final_answer("\\boxed{" * 200_000).marked
    assert final_answer("#### " * 200_000 + "6").text == "6"


ANSWERS: dict[str, list[tuple[str, str | None, float | None]]] = {
    "math": [
        ("3 + 3 = 6\n#### 6", "6", 1.0), ("3 + 3 = 7\n#### 7", GSM8K, 0.0),
        ("3 + 3 = 6\n#### 6", GSM8K, 1.0), (r"It is $\boxed{6}$.", "6", 1.0),
        ("Answer: 6", r"\boxed{6}", 1.0), ("Answer: 6 apples.", "6", 1.0), ("Answer: 6.", "6", 1.0),
        ("Answer: x = 6", "6", 1.0), ("So we get $x = 6$", "6", 1.0),
        ("Thus there are 6", "6", 1.0), ("Thus there are 6 of 7", "6", 0.0), ("no idea", "6", 0.0),
        ("", "6", 0.0), (r"\boxed{}", "6", 0.0), (r"\boxed{0.5}", "1/2", 1.0),
        (r"\boxed{\frac{2}{4}}", r"$\frac{1}{2}$", 1.0), (r"\frac{2}{4}", r"\frac{1}{2}", 1.0),
        ("#### 1234", "1,234", 1.0), ("#### 1,234.00", "1234", 1.0), ("#### $18", "18", 1.0),
        ("Answer: 18", "$18", 1.0), ("Answer: 50%", r"50\%", 1.0),
        ("Answer: 1 2/3", r"\frac{5}{3}", 1.0), ("Answer: 1 + 2x", "2x+1", 1.0),
        ("Answer: 2", "2x+1", 0.0), ("Answer: 2x", "2x+1", 0.0),
        (r"\boxed{(x+1)^2}", "$x^2 + 2x + 1$", 1.0), (r"\boxed{x}", "$x$", 1.0),
        (r"\boxed{y}", r"\boxed{x}", 0.0), ("Answer: (2, 1)", "(1,2)", 0.0),
        ("Answer: {2, 1}", "{1, 2}", 1.0), (r"\boxed{\text{even}}", r"\text{even}", 1.0),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", 1.0), (r"\boxed{" + "{" * 3000, "6", 0.0),
        ("(" * 5000, "6", 0.0), ("Answer: ((((((", "6", 0.0), ("Answer: \x00\ud800", "6", 0.0),
        ("6", None, None),
    ],
    "numeric": [
        ("#### 6", "6", 1.0), ("3 * 2 = 6.", GSM8K, 1.0), ("First 6, then 7.", "6", 0.0),
        ("Answer: 6 of 10", "6", 1.0), ("Answer: 2 * 3 = 6 m^2", "6", 1.0),
        ("Answer: There are 6.", "6", 1.0), (r"\boxed{1,234}", "1234", 1.0),
        (r"\boxed{\$1{,}234.50}", "$1,234.50", 1.0), (r"\boxed{50\%}", "50%", 1.0),
        ("Answer: \u22123", "-3", 1.0), ("Answer: $-3", "-3", 1.0), ("in 2020-21", "-21", 0.0),
        (r"\boxed{\frac{1}{2}}", "1", 0.0), (r"\boxed{\dfrac{1}{2}}", "0.5", 1.0),
        ("1/2", "0.5", 1.0), ("1/2", "1", 0.0), ("1/0", "1", 0.0), ("0.3333333333", "1/3", 1.0),
        ("0.333", "1/3", 0.0), ("1e5", "100000", 1.0), ("9" * 5000, "6", 0.0), ("none", "6", 0.0),
        ("6", "six", None), ("6", "6 apples", None), ("6", "9" * 5000, None), ("6", "", None),
        ("6", None, None), ("1234", "1,234", 1.0), ("12", "12,34", None), ("5", "$5.", 1.0),
        ("0.5", ".5", 1.0), ("5", "5 6", None),
    ],
    "exact": [
        (" Wednesday\n", "Wednesday", 1.0),
        ("It is a day.\nAnswer: Wednesday", "#### Wednesday", 1.0), ("wednesday", "Wednesday", 0.0),
        ("It is Wednesday", "Wednesday", 0.0), ("Wednesday", None, None),
    ],
    "regex": [
        ("abc 12", r"\d+$", 1.0), ("abc", r"\d", 0.0), ("a\nb", "(?s)a.b", 1.0), ("a", None, None),
    ],
    "json": [
        ('{"b": [1, 2], "a": null}', '{"a": null, "b": [1.0, 2]}', 1.0),
        ('{"a": [2, 1]}', '{"a": [1, 2]}', 0.0), ('{"a": true}', '{"a": 1}', 0.0),
        ('{"a": 1, "b": 2}', '{"a": 1}', 0.0),
        ('Here:\n```json\n{"a": 0}\n```\nor\n```json\n{"a": 1}\n```\n', '{"a": 1}', 1.0),
        ('Here: {"a": 1}', '{"a": 1}', 0.0), ("3", "3", 1.0), ("[1]", None, 1.0), ("3", None, 0.0),
        ("[1", None, 0.0), ("[NaN]", None, 0.0), ("[-Infinity]", None, 0.0), ("[1e999]", None, 0.0),
        ("[" * 100_000, None, 0.0), ("[" * 100_000 + "]" * 100_000, "[]", 0.0),
        ('{"a":' * 100_000, None, 0.0), ("[" + "9" * 10_000 + "]", None, 0.0),
        ("[]", "no JSON", None), ("[]", "[NaN]", None),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", list(ANSWERS))
def test_verifiers(name: str) -> None:
    for completion, answer, reward in ANSWERS[name]:
        assert VERIFIERS[name](completion, answer) == reward, (completion[:99], answer)
        if name == "regex" and answer is not None:
            assert find_verifier(f"regex:{answer}")(completion, "ignored") == reward


@pytest.mark.parametrize(
    "answer",
    [
        "Wednesday", "brush", "h", "x", "A", "True", "yes.", "", " ", "Room 5", "12:30",
        r"\boxed{Wednesday}", "#### Wednesday", "He has $5 left", "sqrt(2)", r"$\frac{$", "####",
    ],
)  # fmt: skip
def test_math_leaves_other_answers_alone(answer: str) -> None:
    assert VERIFIERS["math"]("Answer: 5", answer) is None
    assert VERIFIERS["math"](answer, answer) is None


@pytest.mark.parametrize("text", ["9^{9^{9^{9}}}", "9**9**9"])
def test_math_gives_up_on_towers(text: str) -> None:
    assert VERIFIERS["math"](rf"\boxed{{{text}}}", "6") == 0.0


def test_math_outlives_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RecursionError

    assert VERIFIERS["math"]("#### 77", "77") == 1.0
    monkeypatch.setattr("math_verify.verify", broken)
    assert VERIFIERS["math"]("#### 77", "77") == 0.0
    monkeypatch.setattr("math_verify.parse", broken)
    assert VERIFIERS["math"]("#### 78", "77") == 0.0
    assert VERIFIERS["math"]("#### 78", "78") is None


def test_regex_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"'\(' is not a regular expression"):
        find_verifier("regex:(")
    with pytest.raises(UsageError, match="without a pattern"):
        find_verifier("regex:")
    with pytest.raises(DataError, match=r"'\(b' is not a regular .* prompt 'What is b\?'"):
        verify_all("regex", ["What is a?", "What is b?"], ["a", "b"], {"answer": ["(a)", "(b"]})


def test_answers_come_from_the_first_column_that_is_there() -> None:
    columns = {"ground_truth": ["1"], "solution": ["2"], "topic": ["x"]}
    assert verify_all("exact", ["p"], ["2"], columns) == [1.0]
    assert verify_all("exact", ["p"], ["3"], {**columns, "answer": ["3"]}) == [1.0]
    with pytest.raises(DataError, match="the data have: level, topic") as caught:
        verify_all("math", ["p"], ["2"], {"topic": ["x"], "level": [1]})
    assert caught.value.hint == "Name it with --column answer=NAME."
    with pytest.raises(DataError, match="none beside the prompt"):
        verify_all("regex", ["p"], ["2"], {})
    assert verify_all("json", ["p"], ["{}"], {}) == [1.0]
    assert verify_all("regex:a", ["p"], ["a"], {}) == [1.0]


def test_answers_of_other_types() -> None:
    assert verify_all("numeric", ["p"] * 3, ["6"] * 3, {"answer": [6, 6.0, None]}) == [1, 1, None]
    answers = {"answer": [{"a": [True]}, []]}
    assert verify_all("json", ["p"] * 2, ['{"a": [true]}'] * 2, answers) == [1.0, 0.0]


def test_conversations_are_judged_by_their_last_message() -> None:
    parts = [{"type": "text", "text": "#### "}, {"type": "image"}, {"type": "text", "text": "6"}]
    talk = [{"role": "assistant", "content": "#### 5"}, {"role": "assistant", "content": "#### 6"}]
    assert completion_text(talk) == "#### 6"
    assert completion_text([{"role": "assistant", "content": parts}]) == "#### 6"
    assert completion_text([{"role": "assistant", "content": None}]) == ""
    assert completion_text([]) == ""
    for name in ("math", "numeric", "exact"):
        assert verify_all(name, ["p"], [talk], {"answer": ["6"]}) == [1.0]
