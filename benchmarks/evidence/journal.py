"""Finished arms of a study, one line each, so that a stopped study goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bases import MODELS
from stacked import Trained

REWARDED = "rlvr"


def path_of(base: str, task: str) -> Path:
    """Where the finished arms of a base model and a task are; `REWARDED` is a task too."""
    return MODELS / "evidence" / f"{base}-{task}.jsonl"


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The finished arms in a file, in their order; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Journal:
    """A file of finished arms; lines that were made with other settings are ignored."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self._settings = path, settings
        self.arms: dict[str, dict[str, Any]] = {}
        for entry in lines_of(path):
            if entry["settings"] == settings:
                self.arms[entry["name"]] = entry

    def add(self, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write an arm down, on the disk before this returns."""
        entry = {**content, "name": name, "settings": self._settings}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.arms[name] = entry
        return entry


def as_entry(found: list[Trained]) -> list[dict[str, Any]]:
    """Trainings as they are written down."""
    return [asdict(item) for item in found]
