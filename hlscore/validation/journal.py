"""Finished trainings, one line each, so that a stopped trial goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hlscore.errors import ArtifactError, UsageError
from hlscore.unfinished import check_same_run, nothing_to_resume, store_lines, stored_lines
from hlscore.validation.training import Outcome, Trial

# Not named as the progress of `rank` is, which may go to the same folder.
JOURNAL = ".hlscore-validation.jsonl"


class Journal:
    """The finished trainings of a trial.

    Args:
        folder: Folder of the results.
        made_with: All that decides the outcome, as plain data.
        resume: Whether to go on with what is there.

    Raises:
        UsageError: There are trainings of an earlier trial and `resume` is off, or none and it is
            on, or they are of another trial.
        ArtifactError: The file cannot be read or written.
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any], *, resume: bool) -> None:
        self._folder, self._path = folder, folder / JOURNAL
        self._found: dict[Trial, Outcome] = {}
        if not self._path.exists():
            if resume:
                raise nothing_to_resume(folder)
            self._write({"made_with": made_with})
            return
        if not resume:
            raise UsageError(
                f"'{folder}' holds an unfinished trial.",
                hint="Go on with --resume, start anew with --force, or choose another --out.",
            )
        self._read(json.loads(json.dumps(made_with)))

    def find(self, trial: Trial) -> Outcome | None:
        """A finished training, if it is there."""
        return self._found.get(trial)

    def add(self, outcome: Outcome) -> None:
        """Write a training down; it is on the disk before this returns."""
        self._write(asdict(outcome))
        self._found[outcome.trial] = outcome

    def _write(self, content: Mapping[str, Any]) -> None:
        try:
            store_lines(self._path, [content])
        except OSError as error:
            raise ArtifactError(
                f"'{self._path}' cannot be written: {error.strerror}.", hint="Choose another --out."
            ) from error

    def _read(self, made_with: Mapping[str, Any]) -> None:
        try:
            first, *lines = stored_lines(self._path)
            check_same_run(self._folder, first["made_with"], made_with)
            for line in lines:
                outcome = _outcome(line)
                self._found[outcome.trial] = outcome
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"'{self._path}' cannot be read.", hint="Start anew with --force."
            ) from error


def _outcome(line: Mapping[str, Any]) -> Outcome:
    return Outcome(
        trial=Trial(**line["trial"]),
        steps=tuple(line["steps"]),
        curve=tuple(line["curve"]),
        tuning_loss=float(line["tuning_loss"]),
        sums=tuple(line["sums"]),
        seconds=float(line["seconds"]),
        measuring_seconds=float(line["measuring_seconds"]),
        also_sums=tuple(line["also_sums"]),
    )
