"""The files that `compare` and `diff` put beside each other: what they hold, and as plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import read_artifact
from hlscore.errors import HlscoreError
from hlscore.planning.make_plan import make_plan, plan_values, replan, run_settings
from hlscore.records import ScoreReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the files that are compared."""

    path: Path
    label: str  # the parts of its path that set it apart; no two sides have the same
    content: Plan | ScoreReport

    @property
    def from_scores(self) -> bool:
        """Whether the file holds scores, not a plan."""
        return isinstance(self.content, ScoreReport)

    def plan(self, like: Plan | None, given: Mapping[str, Any]) -> Plan:
        """The plan that the file holds, or that its scores give.

        Args:
            like: A plan whose settings plan the scores too; `None` for those of the run.
            given: Plan settings that were asked for, by name.
        """
        if isinstance(self.content, Plan):
            return self.content
        with named(self.path):
            if like is not None:
                return replan(like, self.content, **given)
            return make_plan(self.content, run_settings(self.content, given))


def read_sides(paths: Sequence[Path]) -> tuple[Side, ...]:
    """Read plans and score reports; a path that comes twice is read once."""
    found = {path: read_artifact(path) for path in dict.fromkeys(paths)}
    return tuple(
        Side(path=path, label=label, content=found[path])
        for path, label in zip(paths, _labels(paths), strict=True)
    )


def _labels(paths: Sequence[Path]) -> list[str]:
    parts = [path.absolute().parts for path in paths]
    least = min(len(own) for own in parts)
    first = last = 0
    while first < least - 1 and len({own[first] for own in parts}) == 1:
        first += 1
    while last < least - first - 1 and len({own[-1 - last] for own in parts}) == 1:
        last += 1
    labels = ["/".join(own[first : len(own) - last]) for own in parts]
    return [
        label if labels.count(label) == 1 else f"{label} ({labels[: place + 1].count(label)})"
        for place, label in enumerate(labels)
    ]


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Name the file in errors about its content, and refuse values that no plan can hold.

    Yields:
        Nothing.
    """
    try:
        with plan_values():
            yield
    except HlscoreError as error:
        raise type(error)(f"'{path}': {error.message}", hint=error.hint) from error
