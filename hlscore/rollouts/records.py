"""Completions with rewards, grouped by prompt, and their files: JSON lines that any tool reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hlscore.errors import ArtifactError, first_line
from hlscore.processes import Processes
from hlscore.unfinished import PROGRESS_PREFIX, check_same_run, store_lines, stored_lines

Prompt = str | Sequence[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One completion of a prompt; texts are empty where only ids are known."""

    prompt: Prompt = ""
    prompt_ids: tuple[int, ...]
    completion: Prompt = ""
    completion_ids: tuple[int, ...]  # with the end token, where there is one
    reward: float | None  # `None` where it could not be judged
    truncated: bool = False  # whether it was cut short at the limit of its length
    # Nats of its tokens under the policy that sampled it, NaN where not known; empty when none are.
    log_probs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The completions of one prompt, under a name of their own."""

    name: str
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSet:
    """All completions of a run."""

    source: str
    groups: tuple[RolloutGroup, ...]  # one per prompt
    temperature: float | None = None  # of sampling; `None` where not known
    notes: tuple[str, ...] = ()
    # What it took to sample and judge them, all starts of a resumed run together; 0 of a file.
    seconds: float = field(default=0.0, compare=False)


def write_rollouts(rollouts: RolloutSet, path: Path) -> None:
    """Write one line per completion."""
    with path.open("w", encoding="utf-8") as lines:
        for group in rollouts.groups:
            rows = _rows(group, rollouts.temperature)
            lines.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _rows(group: RolloutGroup, temperature: float | None) -> Iterator[dict[str, Any]]:
    for item in group.rollouts:
        yield {
            "group": group.name,
            "prompt": item.prompt,
            "completion": item.completion,
            "reward": item.reward,
            "truncated": item.truncated,
            "temperature": temperature,
            "prompt_ids": item.prompt_ids,
            "completion_ids": item.completion_ids,
        }


def _group(rows: list[Mapping[str, Any]]) -> RolloutGroup:
    rollouts = tuple(
        Rollout(
            prompt=row["prompt"],
            prompt_ids=tuple(row["prompt_ids"]),
            completion=row["completion"],
            completion_ids=tuple(row["completion_ids"]),
            reward=row["reward"],
            truncated=row["truncated"],
        )
        for row in rows
    )
    if not all(item.reward is None or math.isfinite(item.reward) for item in rollouts):
        raise ValueError("a reward is not a finite number")
    return RolloutGroup(name=rows[0]["group"], rollouts=rollouts)


class RolloutJournal:
    """The groups that one process of an unfinished run has sampled and judged.

    Each finished group is written at once, so that a run that is killed loses none. A journal of
    a run with another identity is refused.

    Attributes:
        seconds: What the stored groups took to sample and judge.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object], processes: Processes) -> None:
        self._folder = folder
        self._identity = json.loads(json.dumps(identity))
        self.seconds = 0.0
        self._path = folder / (
            f"{PROGRESS_PREFIX}-rollouts-{processes.rank}-of-{processes.size}.jsonl"
        )

    def exists(self) -> bool:
        """Whether an unfinished run left a journal."""
        return self._path.exists()

    def load(self) -> dict[int, RolloutGroup]:
        """Read the groups that were finished."""
        if not self.exists():
            return {}
        try:
            lines = stored_lines(self._path)
            if lines:
                check_same_run(self._folder, lines[0]["identity"], self._identity)
            self.seconds = sum(float(line.get("seconds", 0.0)) for line in lines[1:])
            return {int(line["number"]): _group(line["rollouts"]) for line in lines[1:]}
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise ArtifactError(
                f"The stored rollouts '{self._path}' cannot be read: {first_line(error)}",
                hint="Start anew with --force.",
            ) from error

    def append(self, groups: Mapping[int, RolloutGroup], *, seconds: float = 0.0) -> None:
        """Store finished groups."""
        try:
            share = seconds / len(groups)
            lines: list[Mapping[str, object]] = [
                {"number": number, "seconds": share, "rollouts": list(_rows(group, None))}
                for number, group in groups.items()
            ]
            if not self.exists() or self._path.stat().st_size == 0:
                lines.insert(0, {"identity": self._identity})
            store_lines(self._path, lines)
        except OSError as error:
            raise ArtifactError(
                f"Rollouts cannot be stored in '{self._folder}': {first_line(error)}",
                hint="Make room, choose another --out, or use --save-every 0.",
            ) from error
