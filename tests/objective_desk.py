"""A desk for command lines of every objective, which have to leave it tidy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console import QUICK, Outcome, hlscore, write_rows

PROMPTS = [{"prompt": f"question {number}:"} for number in range(6)]
GROUPS = [
    {"prompt": f"q{number}:", "completion": f" a{index}", "reward": float(index)}
    for number in range(6)
    for index in range(2)
]
PAIRS = [{"prompt": f"q{n}:", "chosen": f" good {n}", "rejected": f" bad {n}"} for n in range(6)]
REWARDS = """
import time

def raises(**_):
    raise KeyError("level")

def short(completions, **_):
    return [1.0]

def hangs(completions, **_):
    time.sleep(30)

def words(completions, **_):
    return ["good"] * len(completions)

def infinite(completions, **_):
    return [float("inf")] * len(completions)

def equal(completions, **_):
    return [0.5] * len(completions)

def nothing(completions, **_):
    return [None] * len(completions)

constant = 3
"""


@dataclass
class Desk:
    """A folder of its own, with a good model at hand.

    Attributes:
        folder: The folder, which is the working directory too.
        model: A saved model of 256 tokens.
    """

    folder: Path
    model: Path

    def rank(self, *options: object) -> Outcome:
        return hlscore("rank", self.model, *QUICK, "--out", self.folder / "out", *options)

    def refuse(self, *options: object, code: int = 3) -> str:
        """Expects a run to end with one error and nothing written."""
        outcome = self.rank(*options)
        assert outcome.code == code, outcome
        assert "Traceback" not in outcome.err
        assert not (self.folder / "out").exists()
        return outcome.message

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> Path:
        return write_rows(self.folder / "rows.jsonl", rows)

    def grpo(self, rows: Sequence[Mapping[str, Any]]) -> tuple[object, ...]:
        """Options that rank rollouts, all of them."""
        return ("--objective", "grpo", "--samples", "0", "--rollouts", self.rows(rows))

    def dpo(self, rows: Sequence[Mapping[str, Any]]) -> tuple[object, ...]:
        return ("--objective", "dpo", "--samples", "0", "--data", self.rows(rows))

    def live(self, reward: str, rows: Sequence[Mapping[str, Any]] = PROMPTS) -> tuple[object, ...]:
        """Options that sample a few short completions."""
        return (
            "--objective", "grpo", "--reward", reward, "--data", self.rows(rows),
            "--generations", "2", "--max-new-tokens", "4", "--save-every", "0",
        )  # fmt: skip


Rows = list[dict[str, Any]]


def changed(rows: Sequence[Mapping[str, Any]], index: int, **values: object) -> Rows:
    """The rows with values of one of them changed."""
    return [{**row, **(values if place == index else {})} for place, row in enumerate(rows)]


def everywhere(rows: Sequence[Mapping[str, Any]], **values: object) -> Rows:
    return [{**row, **values} for row in rows]
