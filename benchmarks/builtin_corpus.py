"""Seeded generators of the text behind the built-in probes and the built-in tiny model.

Four kinds of example are made here: worked arithmetic, word problems, short Python code and
plain instructions.  All text was written for this project.  Every answer is computed while the
example is made, and every code answer comes from running the code that is shown.  A prompt
always ends in a newline and a completion never starts with white space, so
``prompt + completion`` is the text to score with any tokenizer.  The answer stands last, behind
a marker that depends on the kind (see ``ANSWER_MARKERS``).
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
from code import InteractiveInterpreter
from collections.abc import Callable, Container, Iterator
from typing import Any, Literal, TypedDict

Kind = Literal["arithmetic", "word_problem", "code", "instruction"]
KINDS: tuple[Kind, ...] = ("arithmetic", "word_problem", "code", "instruction")
ANSWER_MARKERS: dict[str, str] = {
    "arithmetic": "#### ",
    "word_problem": "#### ",
    "code": "# -> ",
    "instruction": "Answer: ",
}
PROBE_COUNTS: dict[Kind, int] = {
    "arithmetic": 96,
    "word_problem": 96,
    "code": 64,
    "instruction": 64,
}


class Example(TypedDict):
    """One example: ``completion`` always ends with the kind's marker and ``answer``."""

    prompt: str
    completion: str
    answer: str
    kind: Kind


Rng = random.Random
# What a family returns: the question, the worked part, and the answer.
Item = tuple[str, str, str]


def _words(text: str) -> list[str]:
    return text.split()


def extract_answer(text: str, kind: str) -> str | None:
    """Returns the answer behind the first marker in a generated text, or None without one."""
    _, marker, rest = text.partition(ANSWER_MARKERS[kind])
    return rest.split("\n", 1)[0].strip() if marker else None


# --- arithmetic -------------------------------------------------------------------------------

ASK = (
    "What is {e}?", "Work out {e}.", "Calculate {e}.", "Find the value of {e}.",
    "How much is {e}?", "Please compute {e}.", "Evaluate {e}.", "Solve this: {e}.",
    "I need the result of {e}.", "Can you tell me what {e} comes to?",
)  # fmt: skip
SHOW = (
    "Show the steps and put the answer after ####.", "Write each step, then #### and the answer.",
    "Explain briefly and finish with #### and the number.", "Go step by step. End with ####.",
    "Give the working first and the answer after ####.", "Keep the working short.",
)  # fmt: skip


def _ask(rng: Rng, expression: str) -> str:
    return rng.choice(ASK).format(e=expression)


def _add_steps(a: int, b: int) -> str:
    """Adds tens and ones apart, which keeps every step a fact a small model can hold."""
    if a < 10 and b < 10:
        return f"{a} + {b} = {a + b}."
    if b < 10:
        ones = a % 10 + b
        return f"{a % 10} + {b} = {ones}. {a - a % 10} + {ones} = {a + b}."
    tens, ones = a - a % 10 + b - b % 10, a % 10 + b % 10
    first = f"{a - a % 10} + {b - b % 10} = {tens}. {a % 10} + {b % 10} = {ones}."
    return f"{first} {tens} + {ones} = {a + b}."


def _add(rng: Rng) -> Item:
    a, b = rng.choice(((9, 9), (89, 9), (59, 39)))
    x, y = rng.randint(1, a), rng.randint(1, b)
    x, y = max(x, y), min(x, y)
    worded = f"the sum of {x} and {y}"
    ask = _ask(rng, rng.choice((f"{x} + {y}", worded, f"{x} plus {y}")))
    return ask, _add_steps(x, y), str(x + y)


def _subtract(rng: Rng) -> Item:
    x = rng.randint(2, rng.choice((18, 60, 99)))
    y = rng.randint(1, x - 1)
    tens, ones = y - y % 10, y % 10
    steps = f"{x} - {y} = {x - y}."
    if tens and ones:
        steps = f"{x} - {tens} = {x - tens}. {x - tens} - {ones} = {x - y}."
    forms = (f"{x} - {y}", f"{x} minus {y}", f"the difference between {x} and {y}")
    return _ask(rng, rng.choice(forms)), steps, str(x - y)


def _multiply(rng: Rng) -> Item:
    x, y = rng.randint(2, 9), rng.randint(2, 9)
    steps = f"{x} * {y} = {x * y}."
    if rng.random() < 0.3:
        x = rng.randint(11, 29)
        tens, ones = (x - x % 10) * y, x % 10 * y
        parts = f"{x - x % 10} * {y} = {tens}. {x % 10} * {y} = {ones}."
        steps = f"{parts} {tens} + {ones} = {x * y}."
    forms = (f"{x} * {y}", f"{x} times {y}", f"the product of {x} and {y}")
    return _ask(rng, rng.choice(forms)), steps, str(x * y)


def _divide(rng: Rng) -> Item:
    y, q = rng.randint(2, 9), rng.randint(2, 9)
    x = y * q
    if rng.random() < 0.6:
        shared = f"one part of {x} cut in {y} equal parts"
        e = rng.choice((f"{x} / {y}", f"{x} divided by {y}", shared))
        return _ask(rng, e), f"{y} * {q} = {x}, so {x} / {y} = {q}.", str(q)
    r = rng.randint(1, y - 1)
    ask = rng.choice((f"What is left when {x + r} is divided by {y}?",
                      f"Find the remainder of {x + r} divided by {y}."))  # fmt: skip
    return ask, f"{y} * {q} = {x}. {x + r} - {x} = {r}.", str(r)


def _two_steps(rng: Rng) -> Item:
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 9)
    shape = rng.randrange(5)
    if shape == 0:
        e, steps, v = f"{a} + {b} + {c}", f"{a} + {b} = {a + b}. {a + b} + {c}", a + b + c
    elif shape == 1:
        e, steps, v = f"{a} + {b} * {c}", f"{b} * {c} = {b * c}. {a} + {b * c}", a + b * c
    elif shape == 2:
        e, steps, v = f"({a} + {b}) * {c}", f"{a} + {b} = {a + b}. {a + b} * {c}", (a + b) * c
    elif shape == 3:
        c = min(c, a + b)
        e, steps, v = f"{a} + {b} - {c}", f"{a} + {b} = {a + b}. {a + b} - {c}", a + b - c
    else:
        c = min(c, a * b)
        e, steps, v = f"{a} * {b} - {c}", f"{a} * {b} = {a * b}. {a * b} - {c}", a * b - c
    return _ask(rng, e), f"{steps} = {v}.", str(v)


def _missing(rng: Rng) -> Item:
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    if rng.random() < 0.5:
        ask = rng.choice((f"Which number goes in the gap of {a} + ? = {a + b}?",
                          f"What must be added to {a} to get {a + b}?",
                          f"If x + {a} = {a + b}, what is x?"))  # fmt: skip
        return ask, f"{a + b} - {a} = {b}.", str(b)
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    ask = rng.choice((f"Which number goes in the gap of {a} * ? = {a * b}?",
                      f"If {a} * x = {a * b}, what is x?"))  # fmt: skip
    return ask, f"{a * b} / {a} = {b}.", str(b)


def _sequence(rng: Rng) -> Item:
    start, step = rng.randint(1, 12), rng.randint(1, 9)
    terms = [start + step * i for i in range(4)]
    row = ", ".join(map(str, terms))
    ask = rng.choice((f"What number comes next: {row}?",
                      f"Continue the row {row} by one number.",
                      f"The numbers {row} follow a rule. Give the next one."))  # fmt: skip
    nxt = terms[-1] + step
    return ask, f"{terms[1]} - {terms[0]} = {step}. {terms[-1]} + {step} = {nxt}.", str(nxt)


def _small_facts(rng: Rng) -> Item:
    a, b = rng.randint(11, 40), rng.randint(2, 9)
    shape = rng.randrange(5)
    if shape == 0:
        return f"What is double {a}?", f"{a} + {a} = {2 * a}.", str(2 * a)
    if shape == 1:
        return f"What is half of {2 * a}?", f"{a} + {a} = {2 * a}.", str(a)
    if shape == 2:
        d = rng.randint(0, 8)
        total = 2 * b + 2 * d
        ask = f"What is the average of {b} and {b + 2 * d}?"
        return ask, f"{b} + {b + 2 * d} = {total}. {total} / 2 = {b + d}.", str(b + d)
    if shape == 3:
        low = a - a % 10
        near = low if a % 10 < 5 else low + 10
        between = f"{a} lies between {low} and {low + 10}."
        return f"Round {a} to the nearest ten.", between, str(near)
    total = a // 10 + a % 10
    return f"Add the digits of {a}.", f"{a // 10} + {a % 10} = {total}.", str(total)


ARITHMETIC: tuple[Callable[[Rng], Item], ...] = (
    _add, _add, _subtract, _multiply, _divide, _two_steps, _missing, _sequence, _small_facts,
)  # fmt: skip


def _arithmetic(rng: Rng) -> Example:
    ask, steps, answer = rng.choice(ARITHMETIC)(rng)
    prompt = f"{ask} {rng.choice(SHOW)}\n" if rng.random() < 0.85 else f"{ask}\n"
    return _example("arithmetic", prompt, steps, answer)


def _example(kind: Kind, prompt: str, worked: str, answer: str) -> Example:
    completion = f"{worked}\n{ANSWER_MARKERS[kind]}{answer}"
    return {"prompt": prompt, "completion": completion, "answer": answer, "kind": kind}


# --- word problems ----------------------------------------------------------------------------

NAMES = _words(
    "Anna Ben Carla David Emma Farid Grace Hugo Ines Jonas Kira Leo Maya Nora Omar Paula Quinn "
    "Rosa Sam Tara Umar Vera Will Yara Zoe Ali Bea Cem Dora Eli"
)
ITEMS = _words(
    "apples pears books pens stamps marbles cards shells coins cups plates stickers eggs nuts "
    "balls flowers buttons candles cookies lemons ribbons stones toys keys"
)
BOXES = _words("boxes bags baskets shelves packs rows jars trays")
PLACES = _words("shop market school library farm park station museum")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
# Each story names the rule that picks its numbers and computes its steps.
STORIES: tuple[tuple[str, str], ...] = (
    ("add", "{n} has {a} {i}. {m} gives {n} {b} more. How many {i} does {n} have now?"),
    ("add", "There are {a} {i} on the table and {b} on the floor. How many {i} are there?"),
    ("add", "On {d} {n} found {a} {i} and on the next day {b}. How many {i} did {n} find?"),
    ("add", "{n} bought {a} {i} at the {p} and had {b} before. How many {i} does {n} own?"),
    ("add", "A ticket costs {a} dollars and a drink costs {b} dollars. What do both cost?"),
    ("add", "{n} is {a} years old. How old will {n} be in {b} years?"),
    ("add", "{n} read {a} pages in the morning and {b} pages at night. How many pages is that?"),
    ("sub", "{n} had {a} {i} and gave {b} of them to {m}. How many {i} does {n} have left?"),
    ("sub", "A {p} had {a} {i}. By {d} evening {b} were sold. How many {i} were not sold?"),
    ("sub", "{n} has {a} {i} and {m} has {b} {i}. How many more {i} does {n} have than {m}?"),
    ("sub", "There were {a} people on the bus. At the {p} {b} got off. How many stayed on?"),
    ("sub", "{n} needs {a} {i} for a game but has only {b}. How many {i} are missing?"),
    ("sub", "A rope is {a} meters long. {n} cuts off {b} meters. How long is the rest?"),
    ("sub", "{n} paid {b} dollars from a purse with {a} dollars. How many dollars remain?"),
    ("mul", "{n} has {a} {x} with {b} {i} in each. How many {i} does {n} have?"),
    ("mul", "One of the {i} costs {a} dollars. How many dollars do {b} of them cost?"),
    ("mul", "{n} walks {a} miles every day. How many miles does {n} walk in {b} days?"),
    ("mul", "At the {p} there are {a} {x}. Each holds {b} {i}. How many {i} are at the {p}?"),
    ("mul", "{n} earns {a} dollars an hour and works {b} hours on {d}. How much does {n} earn?"),
    ("div", "{n} shares {c} {i} equally among {a} friends. How many {i} does each friend get?"),
    ("div", "{c} {i} are packed into {x} of {a}. How many {x} are filled?"),
    ("div", "A trip of {c} miles takes {a} hours. How many miles is that per hour?"),
    ("div", "{n} saved {c} dollars in {a} weeks. How much was saved per week?"),
    ("add_sub", "{n} had {a} {i}, got {b} more from {m} and lost {c}. How many {i} are left?"),
    ("add_sub", "A {p} had {a} {i}. It got {b} more on {d} and sold {c}. How many {i} remain?"),
    ("add_sub", "{a} people were on a train. {b} got on and {c} got off. How many are on now?"),
    ("mul_add", "{n} fills {a} {x} with {b} {i} each and has {c} over. How many {i} are there?"),
    ("mul_add", "{n} buys {a} {i} at {b} dollars each and a map for {c}. What is the total?"),
    ("mul_sub", "{n} had {a} {x} of {b} {i}. {m} took {c} {i}. How many {i} does {n} still have?"),
    ("mul_sub", "{n} sold {a} {i} for {b} dollars each and spent {c} dollars. How much is left?"),
    ("add_add", "{n} has {a} {i}, {m} has {b} and {k} has {c}. How many {i} do the three have?"),
    ("add_add", "{n} ran {a} miles on {d}, then {b} and then {c}. How many miles is that in all?"),
    ("more", "{n} has {a} {i}. {m} has {b} more than {n}. How many {i} do they have together?"),
    ("times", "{n} has {a} {i}. {m} has {b} times as many. How many {i} does {m} have?"),
)  # fmt: skip
TASKS = ("", "", "Solve the problem. ", "Question: ", "Read and answer. ", "Here is a problem. ")
# How the working is put into words: openings of the first step and of the second.
WORKING: dict[str, tuple[tuple[str, ...], str]] = {
    "add": (("Add both amounts: ", "Together that is ", "We add: "), ""),
    "sub": (("Subtract to find the rest: ", "Take the smaller one away: ", "We subtract: "), ""),
    "mul": (("Each one counts the same, so multiply: ", "We multiply: "), ""),
    "times": (("Multiply by the number of times: ", "We multiply: "), ""),
    "div": (("Split into equal parts: ", "We divide: "), ""),
    "add_sub": (("First add what came in: ", "Start with "), " Then take away what went: "),
    "add_add": (("Add the first two: ", "Start with "), " Then add the third: "),
    "mul_add": (("First multiply: ", "The equal parts make "), " Then add the rest: "),
    "mul_sub": (("First multiply: ", "The equal parts make "), " Then subtract: "),
    "more": (("The second one has ", "First find the second amount: "), " Together that is "),
}


def _numbers(rng: Rng, rule: str) -> tuple[dict[str, int], list[tuple[str, int]]]:
    """Picks a story's numbers and returns them with the steps as (expression, value)."""
    big = rng.random() < 0.3
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    if big and rule in ("add", "sub"):
        a, b = rng.randint(10, 50), rng.randint(2, 30)
    if rule == "sub":
        a, b = max(a, b) + rng.randint(1, 9), min(a, b)
        return {"a": a, "b": b}, [(f"{a} - {b}", a - b)]
    if rule in ("add", "mul", "times"):
        sign, value = ("+", a + b) if rule == "add" else ("*", a * b)
        return {"a": a, "b": b}, [(f"{a} {sign} {b}", value)]
    if rule == "div":
        return {"a": a, "c": a * b}, [(f"{a * b} / {a}", b)]
    first = a * b if rule.startswith("mul") else a + b
    one = (f"{a} * {b}" if rule.startswith("mul") else f"{a} + {b}", first)
    if rule == "more":
        return {"a": a, "b": b}, [one, (f"{a} + {first}", a + first)]
    if rule.endswith("sub"):
        c = min(c, first - 1)
        return {"a": a, "b": b, "c": c}, [one, (f"{first} - {c}", first - c)]
    return {"a": a, "b": b, "c": c}, [one, (f"{first} + {c}", first + c)]


def _word_problem(rng: Rng) -> Example:
    rule, story = rng.choice(STORIES)
    numbers, steps = _numbers(rng, rule)
    n, m, k = rng.sample(NAMES, 3)
    words = {"n": n, "m": m, "k": k, "i": rng.choice(ITEMS), "x": rng.choice(BOXES)}
    text = story.format(**words, **numbers, p=rng.choice(PLACES), d=rng.choice(DAYS))
    openings, between = WORKING[rule]
    worked = rng.choice(openings) + between.join(f"{e} = {v}." for e, v in steps)
    tail = f" {rng.choice(SHOW)}" if rng.random() < 0.3 else ""
    prompt = f"{rng.choice(TASKS)}{text}{tail}\n"
    return _example("word_problem", prompt, worked, str(steps[-1][1]))


# --- code -------------------------------------------------------------------------------------

WORDS = _words(
    "apple bird cloud dog egg fish garden house ice jar king lamp moon night orange paper queen "
    "river stone tree uncle van water year zebra bread chair door fire green"
)
# name, parameters, what it returns, body lines after the signature.  K is a drawn constant.
FUNCTIONS: tuple[tuple[str, str, str, str], ...] = (
    ("add_K", "x", "returns x plus K", "return x + K"),
    ("minus_K", "x", "returns x minus K", "return x - K"),
    ("times_K", "x", "returns x times K", "return x * K"),
    ("twice_plus_K", "x", "doubles x and adds K", "return 2 * x + K"),
    ("square", "x", "returns the square of x", "return x * x"),
    ("is_above_K", "x", "says whether x is greater than K", "return x > K"),
    ("is_even", "x", "says whether x is even", "return x % 2 == 0"),
    ("rest_K", "x", "returns the remainder of x divided by K", "return x % K"),
    ("larger", "x, y", "returns the larger of x and y", "return max(x, y)"),
    ("smaller", "x, y", "returns the smaller of x and y", "return min(x, y)"),
    ("total", "x, y", "adds x and y", "return x + y"),
    ("area", "x, y", "multiplies x by y", "return x * y"),
    ("gap", "x, y", "returns how far x and y are apart", "return abs(x - y)"),
    ("limit_K", "x", "returns x, but never more than K",
     "if x > K:\n        return K\n    return x"),
    ("sign_of", "x", "returns 'big' if x is above K and 'small' otherwise",
     "if x > K:\n        return 'big'\n    return 'small'"),
    ("first", "v", "returns the first element of the list v", "return v[0]"),
    ("last", "v", "returns the last element of the list v", "return v[-1]"),
    ("count", "v", "returns the number of elements of the list v", "return len(v)"),
    ("biggest", "v", "returns the largest element of the list v", "return max(v)"),
    ("add_up", "v", "adds up the list v",
     "t = 0\n    for n in v:\n        t += n\n    return t"),
    ("above_K", "v", "keeps the elements of v greater than K", "return [n for n in v if n > K]"),
    ("turned", "v", "returns the list v in reverse order", "return v[::-1]"),
    ("plus_K", "v", "adds K to every element of v", "return [n + K for n in v]"),
    ("greet", "w", "returns 'hi ' followed by w", "return 'hi ' + w"),
    ("shout", "w", "returns w in upper case", "return w.upper()"),
    ("size", "w", "returns the length of the string w", "return len(w)"),
    ("head", "w", "returns the first letter of w", "return w[0]"),
    ("repeat_K", "w", "repeats the string w K times", "return w * K"),
)  # fmt: skip
WRITE = (
    "Write a Python function {s} that {d}. Show {c} in a last comment.",
    "Define {s} in Python. It {d}. Then give the value of {c} after # ->.",
    "Python task: {s} {d}. Write it and state what {c} gives.",
    "Please write {s}, a Python function that {d}. End with the result of {c}.",
    'Complete this function and give {c}.\n\ndef {s}:\n    """It {d}."""',
    'Fill in the body, then add a comment with the value of {c}.\n\ndef {s}:\n    """It {d}."""',
)
PRINTS: tuple[tuple[str, str], ...] = (
    ("x = A\ny = x + B\nprint(y)", "x is A, so y is A + B."),
    ("x = A\nx = x * B\nprint(x)", "x is A, then A * B."),
    ("a = A\nb = B\nprint(a + b)", "a + b is A + B."),
    ("a = A\nb = B\na, b = b, a\nprint(a)", "a and b are swapped, so a is B."),
    ("a = A\nb = B\nprint(a > b)", "This asks if A is greater than B."),
    ("print(max(A, B, C))", "It is the largest of A, B and C."),
    ("print(min(A, B, C))", "It is the smallest of A, B and C."),
    ("v = [A, B, C]\nprint(v[1])", "Index 1 is the second element."),
    ("v = [A, B, C]\nprint(sum(v))", "It is A + B + C."),
    ("v = [A, B]\nv.append(C)\nprint(v)", "C is put at the end."),
    ("v = [A, B, C]\nprint(sorted(v))", "The numbers are put in order."),
    ("v = [A, B, C]\nprint(len(v))", "The list has 3 elements."),
    ("d = {'W': A, 'V': B}\nprint(d['V'])", "The value of 'V' is B."),
    ("t = 0\nfor n in [A, B]:\n    t += n\nprint(t)", "t is A, then A + B."),
    ("for i in range(3):\n    n = A + i\nprint(n)", "The last i is 2, so n is A + 2."),
    ("x = A\nif x > B:\n    print('W')\nelse:\n    print('V')", "Is A greater than B?"),
    ("w = 'W'\nprint(w[0])", "The first letter of 'W' is shown."),
    ("w = 'W'\nprint(w + 'V')", "The two words are joined."),
    ("w = 'W'\nprint(w.upper())", "The word is put in upper case."),
    ("w = 'W'\nprint(len(w))", "The letters of 'W' are counted."),
    ("print('-'.join(['W', 'V']))", "The words are joined with '-'."),
    ("n = A\nprint(f'{n} W')", "n is A and the word follows."),
)
READ = (
    "What does this Python code print?", "Read the program and give its output.",
    "What is the output of this code?", "Which text does this Python program show?",
    "Run this in your head and say what is printed.", "Give the printed result.",
)  # fmt: skip


def _captured(source: str) -> str:
    """Runs our own templated source and returns what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        InteractiveInterpreter().runcode(compile(source, "<template>", "exec"))
    if not out.getvalue():
        raise RuntimeError(f"a template failed to print:\n{source}")
    return out.getvalue().strip()


def _write_function(rng: Rng) -> Example:
    name, params, doc, body = rng.choice(FUNCTIONS)
    k = str(rng.randint(2, 9))
    name, doc, body = (re.sub(r"\bK\b|(?<=_)K\b", k, t) for t in (name, doc, body))
    draws: dict[str, Callable[[], Any]] = {
        "v": lambda: [rng.randint(1, 12) for _ in range(rng.randint(2, 4))],
        "w": lambda: rng.choice(WORDS),
    }
    values = [draws.get(p, lambda: rng.randint(1, 15))() for p in params.split(", ")]
    call = f"{name}({', '.join(map(repr, values))})"
    signature = f"{name}({params})"
    source = f"def {signature}:\n    {body}"
    prompt = rng.choice(WRITE).format(s=signature, d=doc, c=call) + "\n"
    return _example("code", prompt, f"{source}\n\n# {call}", _captured(f"{source}\nprint({call})"))


def _read_program(rng: Rng) -> Example:
    source, worked = rng.choice(PRINTS)
    one, two = rng.sample(WORDS, 2)
    filled = {"A": rng.randint(1, 12), "B": rng.randint(1, 12), "C": rng.randint(1, 12)}
    table = {**{key: str(v) for key, v in filled.items()}, "W": one, "V": two}
    # Only lone capitals are places to fill, so "Index" or "The" stay as they are.
    source, worked = (re.sub(r"\b[ABCWV]\b", lambda m: table[m[0]], t) for t in (source, worked))
    prompt = f"{rng.choice(READ)}\n\n{source}\n"
    return _example("code", prompt, f"# {worked}", _captured(source))


def _code(rng: Rng) -> Example:
    return _write_function(rng) if rng.random() < 0.5 else _read_program(rng)


# --- instructions -----------------------------------------------------------------------------

OPPOSITES = dict(
    pair.split("-")
    for pair in _words(
        "hot-cold big-small tall-short fast-slow old-young open-closed full-empty wet-dry up-down "
        "day-night happy-sad light-dark hard-soft loud-quiet rich-poor early-late long-short "
        "strong-weak clean-dirty high-low left-right near-far thick-thin first-last push-pull"
    )
)
CATEGORIES = {
    "animal": _words("dog cat horse cow sheep lion tiger bear wolf goat"),
    "fruit": _words("apple pear plum cherry grape lemon peach banana mango melon"),
    "color": _words("red blue green yellow purple white black brown pink gray"),
    "tool": _words("hammer saw drill axe spade file wrench pliers ruler brush"),
    "vehicle": _words("car bus train truck ship plane bike tram boat van"),
    "drink": _words("water milk tea coffee juice cocoa soda wine cider beer"),
}
CITIES = _words("Oslo Rome Lima Paris Cairo Delhi Tokyo Quito Berlin Madrid Dublin Athens")
JOBS = _words("baker pilot nurse farmer teacher driver painter doctor singer cook")
ORDINALS = ("first", "second", "third")


def _reorder(rng: Rng) -> Item:
    words = rng.sample(WORDS, rng.randint(3, 4))
    row = ", ".join(words)
    if rng.random() < 0.5:
        ask = rng.choice(("Sort these words alphabetically: {}.", "Put {} in A to Z order.",
                          "Arrange in alphabetical order: {}."))  # fmt: skip
        ordered = sorted(words)
        initials = " ".join(w[0] for w in ordered)
        return ask.format(row), f"The first letters in order are {initials}.", ", ".join(ordered)
    ask = rng.choice(("Reverse the order of this list: {}.", "Write {} from last to first.",
                      "Give the list {} backwards, word by word."))  # fmt: skip
    return ask.format(row), f"The last word is {words[-1]}.", ", ".join(reversed(words))


def _sort_numbers(rng: Rng) -> Item:
    numbers = rng.sample(range(1, 60), rng.randint(3, 4))
    row, down = ", ".join(map(str, numbers)), rng.random() < 0.4
    way = "from largest to smallest" if down else "from smallest to largest"
    ask = rng.choice(("Sort {} {}.", "Write the numbers {} in order {}.", "Order {} {}, please."))
    ordered = sorted(numbers, reverse=down)
    worked = f"The {'largest' if down else 'smallest'} is {ordered[0]}."
    return ask.format(row, way), worked, ", ".join(map(str, ordered))


def _letters(rng: Rng) -> Item:
    word = rng.choice([*WORDS, *(w for group in CATEGORIES.values() for w in group)])
    spelled = "-".join(word)
    shape = rng.randrange(4)
    if shape == 0:
        ask = rng.choice(("Reverse the word '{}'.", "Spell '{}' backwards."))
        return ask.format(word), f"The letters are {spelled}.", "-".join(reversed(word))
    if shape == 1:
        letter = rng.choice(word)
        ask = f"How often does the letter {letter} appear in '{word}'?"
        return ask, f"The letters are {spelled}.", str(word.count(letter))
    if shape == 2:
        ask = rng.choice(("How many letters does '{}' have?", "Count the letters of '{}'."))
        return ask.format(word), f"The letters are {spelled}.", str(len(word))
    last = rng.random() < 0.5
    ask = f"What is the {'last' if last else 'first'} letter of '{word}'?"
    return ask, f"The letters are {spelled}.", word[-1 if last else 0]


def _pick(rng: Rng) -> Item:
    if rng.random() < 0.5:
        a, b = rng.sample(range(1, 100), 2)
        small = rng.random() < 0.4
        ask = rng.choice(("Which number is {}, {} or {}?", "Pick the {} one of {} and {}."))
        value = min(a, b) if small else max(a, b)
        word = "smaller" if small else "larger"
        return ask.format(word, a, b), f"{min(a, b)} is less than {max(a, b)}.", str(value)
    words = rng.sample(WORDS, 3)
    spot = rng.randrange(3)
    ask = rng.choice(("What is the {} word in this list: {}?", "Give the {} item of {}."))
    text = ask.format(ORDINALS[spot], ", ".join(words))
    return text, f"The {ORDINALS[spot]} word is {words[spot]}.", words[spot]


def _meaning(rng: Rng) -> Item:
    if rng.random() < 0.4:
        word, other = rng.choice(sorted(OPPOSITES.items()))
        ask = rng.choice(("What is the opposite of '{}'?", "Name the opposite of '{}'.",
                          "Give the antonym of '{}'.",
                          "Which word means the reverse of '{}'?"))  # fmt: skip
        return ask.format(word), f"The opposite of {word} is {other}.", other
    kind, other_kind = rng.sample(sorted(CATEGORIES), 2)
    if rng.random() < 0.5:
        word = rng.choice(CATEGORIES[kind])
        options = rng.sample([kind, other_kind], 2)
        ask = rng.choice(("Is '{0}' a kind of {1} or {2}?", "Choose {1} or {2}: what is '{0}'?"))
        return ask.format(word, *options), f"It is a kind of {kind}.", kind
    odd = rng.choice(CATEGORIES[other_kind])
    group = [*rng.sample(CATEGORIES[kind], 3), odd]
    rng.shuffle(group)
    ask = rng.choice(("Which word does not belong: {}?", "Find the odd one out of {}."))
    return ask.format(", ".join(group)), f"The others are a kind of {kind}.", odd


def _record(rng: Rng) -> Item:
    record: dict[str, str | int] = {
        "name": rng.choice(NAMES), "age": rng.randint(18, 79),
        "city": rng.choice(CITIES), "job": rng.choice(JOBS),
    }  # fmt: skip
    said = f"{record['name']}, age {record['age']}, works as a {record['job']} in {record['city']}."
    if rng.random() < 0.5:
        said = "; ".join(f"{key}: {value}" for key, value in record.items()) + "."
    if rng.random() < 0.5:
        key = rng.choice(sorted(record))
        ask = rng.choice(("Extract the {} from this text: {}", "What is the {} given here? {}",
                          "Return only the {} field. {}"))  # fmt: skip
        return ask.format(key, said), f"The {key} is {record[key]}.", str(record[key])
    keys = rng.sample(sorted(record), 2)
    ask = rng.choice(("Return JSON with the keys {} and {}. {}", "Format {} and {} as JSON: {}",
                      "Make a JSON object of the {} and the {}. {}"))  # fmt: skip
    worked = f"The {keys[0]} is {record[keys[0]]} and the {keys[1]} is {record[keys[1]]}."
    return ask.format(*keys, said), worked, json.dumps({key: record[key] for key in keys})


def _rewrite(rng: Rng) -> Item:
    words = rng.sample(WORDS, 3)
    row = " ".join(words)
    shape = rng.randrange(5)
    if shape == 0:
        return f"Write '{row}' in capital letters.", "Each letter is changed.", row.upper()
    if shape == 1:
        old, new = words[1], rng.choice(CITIES)
        ask = f"Replace '{old}' with '{new}' in this text: '{row}'."
        return ask, f"The word {old} becomes {new}.", row.replace(old, new)
    if shape == 2:
        ask = f"Join the words {', '.join(words)} with hyphens."
        return ask, "A hyphen goes between the words.", "-".join(words)
    if shape == 3:
        times = rng.randint(2, 4)
        ask = f"Repeat the word '{words[0]}' {times} times."
        return ask, f"It is written {times} times.", " ".join([words[0]] * times)
    wanted = rng.choice([*words, *rng.sample(WORDS, 3)])
    verdict = "yes" if wanted in words else "no"
    ask = f"Is the word '{wanted}' in this list: {', '.join(words)}? Say yes or no."
    return ask, "Each word is compared.", verdict


def _calendar(rng: Rng) -> Item:
    spot, ahead = rng.randrange(7), rng.randint(1, 4)
    path = [DAYS[(spot + i) % 7] for i in range(ahead + 1)]
    plural = "day" if ahead == 1 else "days"
    ask = rng.choice(("What day is {} {} after {}?", "Name the day {} {} after {}."))
    return ask.format(ahead, plural, path[0]), f"The days are {', '.join(path)}.", path[-1]


INSTRUCTIONS: tuple[Callable[[Rng], Item], ...] = (
    _reorder, _sort_numbers, _letters, _pick, _pick, _meaning, _record, _record, _rewrite,
    _calendar,
)  # fmt: skip
REPLY = (
    "Finish with 'Answer:' and the result.", "Explain in short, then write Answer: and the result.",
    "Give a short reason and then the answer.", "End your reply with the answer.",
)  # fmt: skip


def _instruction(rng: Rng) -> Example:
    ask, worked, answer = rng.choice(INSTRUCTIONS)(rng)
    tail = f" {rng.choice(REPLY)}" if rng.random() < 0.6 else ""
    return _example("instruction", f"{ask}{tail}\n", worked, answer)


# --- sets of examples -------------------------------------------------------------------------

MAKERS: dict[Kind, Callable[[Rng], Example]] = {
    "arithmetic": _arithmetic,
    "word_problem": _word_problem,
    "code": _code,
    "instruction": _instruction,
}


def distinct_examples(
    seed: int, counts: dict[Kind, int], taken: Container[str] = frozenset()
) -> list[Example]:
    """Returns shuffled examples with distinct prompts, none of them in ``taken``."""
    rng = random.Random(seed)
    seen: set[str] = set()
    made: list[Example] = []
    for kind, count in counts.items():
        wanted = len(made) + count
        while len(made) < wanted:
            example = MAKERS[kind](rng)
            if example["prompt"] not in seen and example["prompt"] not in taken:
                seen.add(example["prompt"])
                made.append(example)
    rng.shuffle(made)
    return made


def training_stream(seed: int, taken: Container[str]) -> Iterator[Example]:
    """Yields training examples without end, never one whose prompt is in ``taken``.

    The small families have few prompts, so a training prompt may come back; a probe may not.
    """
    rng = random.Random(seed)
    kinds, weights = list(PROBE_COUNTS), list(PROBE_COUNTS.values())
    while True:
        example = MAKERS[rng.choices(kinds, weights)[0]](rng)
        if example["prompt"] not in taken:
            yield example


def probe_examples(seed: int = 20261123) -> list[Example]:
    """Returns the 320 built-in probes in their fixed order."""
    return distinct_examples(seed, PROBE_COUNTS)
