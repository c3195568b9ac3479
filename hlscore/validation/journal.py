"""Finished trainings, one line each, so that a stopped validation goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hlscore.errors import ArtifactError, UsageError
from hlscore.unfinished import check_same_run, nothing_to_resume, store_lines, stored_lines
from hlscore.validation.training import Outcome, Training

# Not named as the progress of `rank` is, which may go to the same folder.
JOURNAL = ".hlscore-validation.jsonl"


class Journal:
    """The finished trainings of a validation.

    Args:
        folder: Folder of the results.
        made_with: All that decides the outcome, as plain data.
        resume: Whether to go on with what is there; else it is an error that something is.
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any], *, resume: bool) -> None:
        self._path = folder / JOURNAL
        self._found: dict[Training, Outcome] = {}
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
        try:
            first, *lines = stored_lines(self._path)
            check_same_run(folder, first["made_with"], json.loads(json.dumps(made_with)))
            for line in lines:
                values: dict[str, Any] = {
                    name: tuple(value) if isinstance(value, list) else value
                    for name, value in line.items()
                }
                outcome = Outcome(**values | {"training": Training(**line["training"])})
                self._found[outcome.training] = outcome
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"'{self._path}' cannot be read.", hint="Start anew with --force."
            ) from error

    def find(self, training: Training) -> Outcome | None:
        """The outcome of a training, if it is finished."""
        return self._found.get(training)

    def add(self, outcome: Outcome) -> None:
        """Keep the outcome of a training; it is on the disk before this returns."""
        self._write(asdict(outcome))
        self._found[outcome.training] = outcome

    def _write(self, content: Mapping[str, Any]) -> None:
        try:
            store_lines(self._path, [content])
        except OSError as error:
            raise ArtifactError(
                f"'{self._path}' cannot be written: {error.strerror}.", hint="Choose another --out."
            ) from error
